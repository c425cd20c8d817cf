"""Whether Intel's matrix unit may be used: Linux gives its 8 KB of state to who asks for it."""

from __future__ import annotations

import ctypes
import platform

# linux/arch/x86: arch_prctl is call 158; XTILEDATA is feature 18 of the extended state.
_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XTILEDATA = 18


def amx_permitted() -> bool:
    """Ask Linux on x86-64 for AMX's state, as oneDNN does before it uses AMX."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    return call(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0
