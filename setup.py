"""Compile the core; every other fact about the package lives in pyproject.toml.

PGTICK_BUILD=trace builds it for line coverage (.ci/core trace), PGTICK_BUILD=sanitize with AddressSanitizer and
UndefinedBehaviorSanitizer (.ci/core sanitize).
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# -g0 takes an extension from 1.2 MB to 0.3 MB.
FLAGS = ["/O2"] if sys.platform == "win32" else ["-O3", "-g0"]
CXX_FLAGS = ["/std:c++17"] if sys.platform == "win32" else ["-std=c++17"]

BUILD = os.environ.get("PGTICK_BUILD", "")
if BUILD not in ("", "trace", "sanitize"):
    sys.exit(f"PGTICK_BUILD is trace or sanitize, not {BUILD!r}")
MACROS: list[tuple[str, str | None]] = []
LINK_FLAGS: list[str] = []
if BUILD == "trace":
    MACROS = [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    FLAGS = ["-O0", "-g0"]
elif BUILD == "sanitize":
    LINK_FLAGS = ["-fsanitize=address,undefined"]
    FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", *LINK_FLAGS]

# C++ for std::to_chars and std::from_chars, a double's shortest text and back, and for memory shared with Arrow.
EXTENSIONS = [
    Extension(
        f"pgtick._fast.{name}",
        [f"src/_fast/{name}.pyx"],
        language="c++",
        define_macros=MACROS,
        extra_compile_args=FLAGS + CXX_FLAGS,
        extra_link_args=LINK_FLAGS,
    )
    for name in sorted(path.stem for path in Path("src/_fast").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        EXTENSIONS,
        include_path=["src"],
        # A changed directive does not change a timestamp.
        force=True,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "auto_pickle": False,
            "autotestdict": False,
            "embedsignature": False,
            "linetrace": BUILD == "trace",
        },
    ),
)
