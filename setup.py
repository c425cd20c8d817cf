"""Map the top-level folders onto the subpackages of ``lorafusion``.

``lorafusion/<name>`` is a link to ``../<name>`` for checkouts, editors and type checkers. Packages
are listed through this map instead, so that a tool that drops links still packages right.
"""

import platform

from setuptools import Extension, find_namespace_packages, setup

TOP_LEVEL = ("kernels", "planner", "launch", "jobs")
# By name: a search of lorafusion/ would follow the links and find the top-level folders twice.
INSIDE = (
    *("api", "cli", "models", "adapters", "data", "doctor", "training", "bench", "plans"),
    *("profiling", "reports"),
)
CACHE = ["__pycache__", "*.__pycache__"]

package_dir = {"lorafusion": "lorafusion"}
packages = ["lorafusion", *(f"lorafusion.{name}" for name in INSIDE)]
for name in TOP_LEVEL:
    package_dir[f"lorafusion.{name}"] = name
    packages += [f"lorafusion.{name}"]
    packages += [f"lorafusion.{name}.{sub}" for sub in find_namespace_packages(name, exclude=CACHE)]

# The CPU backend's loops, a build per width of vectors: kernels/native/library.py takes the widest
# that the processor runs. Optional: without a compiler the ops run in torch, slower.
SOURCES = ("lora", "attention", "cross_entropy", "elementwise")
HEADERS = ("vectors", "functions", "attention_blocks", "attention_tasks")
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-Wno-psabi"]
WIDTHS = {"generic": []}
if platform.machine() in ("x86_64", "AMD64"):
    WIDTHS |= {"v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4"]}
loops = [
    Extension(
        f"lorafusion.kernels.native.lora_{name}",
        sources=[f"kernels/native/{name}.cpp" for name in SOURCES],
        depends=[f"kernels/native/{name}.h" for name in HEADERS],
        extra_compile_args=FLAGS + flags,
        extra_link_args=["-fopenmp"],
        optional=True,
    )
    for name, flags in WIDTHS.items()
]

setup(
    ext_modules=loops,
    packages=packages,
    package_dir=package_dir,
    package_data={
        "lorafusion": ["py.typed"],
        "lorafusion.jobs.examples": ["*.yaml"],
        "lorafusion.jobs.store.migrations": ["*.mako"],
        "lorafusion.kernels.configs": ["*.json"],
        "lorafusion.plans": ["*.html", "*.css", "*.js"],
        "lorafusion.reports": ["*.html", "*.css", "*.js"],
    },
)
