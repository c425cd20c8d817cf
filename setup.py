"""Map the top-level folders onto the subpackages of ``lorafusion``.

``lorafusion/<name>`` is a link to ``../<name>`` for checkouts, editors and type checkers. Packages
are listed through this map instead, so that a tool that drops links still packages right.
"""

from setuptools import find_namespace_packages, setup

TOP_LEVEL = ("kernels", "planner", "launch", "jobs")
# By name: a search of lorafusion/ would follow the links and find the top-level folders twice.
INSIDE = ("api", "cli", "models", "adapters", "data", "training", "bench")
CACHE = ["__pycache__", "*.__pycache__"]

package_dir = {"lorafusion": "lorafusion"}
packages = ["lorafusion", *(f"lorafusion.{name}" for name in INSIDE)]
for name in TOP_LEVEL:
    package_dir[f"lorafusion.{name}"] = name
    packages += [f"lorafusion.{name}"]
    packages += [f"lorafusion.{name}.{sub}" for sub in find_namespace_packages(name, exclude=CACHE)]

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={"lorafusion": ["py.typed"], "lorafusion.jobs.examples": ["*.yaml"]},
)
