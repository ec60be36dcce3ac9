"""Builds the Cython modules. Everything else about the package is in pyproject.toml.

`XTREE_DEBUG=1` makes the checked build: bounds checks, wraparound checks and C assertions. `XTREE_SANITIZE` makes a
build that one of the compiler's sanitizers watches: `address` checks every access to memory and undefined behaviour
(make asan), `thread` checks what threads share (make tsan). A process that uses it must be started with the library of
the sanitizer preloaded. Each build has a directory of its own. An optimisation that `CFLAGS` names is not overridden.
"""

import glob
import multiprocessing
import os
import sys
import sysconfig
import time

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SANITIZERS = {  # value of XTREE_SANITIZE -> flags of compiler and linker
    "": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
    "thread": ["-fsanitize=thread", "-fno-omit-frame-pointer"],
}
SANITIZE = os.environ.get("XTREE_SANITIZE", "")
if SANITIZE not in SANITIZERS:
    raise SystemExit(f"XTREE_SANITIZE must be {' or '.join(filter(None, SANITIZERS))}, not {SANITIZE!r}")
DEBUG = SANITIZE == "address" or os.environ.get("XTREE_DEBUG", "") not in ("", "0")
BUILD = SANITIZE or ("checked" if DEBUG else "")
BASE = f"build/{BUILD or 'release'}"
PROBES = "xtree.tools.probes."  # for tests and benchmarks: no wheel has them
SOURCES = sorted(glob.glob("xtree/**/*.pyx", recursive=True)) + sorted(glob.glob("tools/probes/*.pyx"))

HEADERS = sorted({os.path.dirname(header) for header in glob.glob("xtree/**/*.h", recursive=True)})

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
    "freethreading_compatible": False,
}

if sys.platform == "win32":
    COMPILE = ["/O2", "/fp:precise", "/std:c11"] if not DEBUG else ["/Od", "/std:c11"]
else:
    COMPILE = ["-std=gnu11", "-ffp-contract=off", "-Wno-unused-function", "-Wno-unreachable-code"]
    OPTIMIZE = [] if "-O" in os.environ.get("CFLAGS", "") else ["-O3"]
    COMPILE += ["-O1", "-g", "-UNDEBUG"] if DEBUG or SANITIZE else [*OPTIMIZE, "-g0", "-fno-math-errno"]
    COMPILE += SANITIZERS[SANITIZE]


def name_of(source):
    """The dotted name that a source file is imported by; tools/ is installed as xtree.tools."""
    name = source.removesuffix(".pyx").replace(os.sep, ".")
    return f"xtree.{name}" if name.startswith("tools.") else name


extensions = [
    Extension(
        name_of(source),
        [source],
        include_dirs=HEADERS,
        extra_compile_args=COMPILE,
        extra_link_args=SANITIZERS[SANITIZE],
        define_macros=[("XTREE_DEBUG", "1")] if DEBUG else [],
    )
    for source in SOURCES
]


class BuildExtensions(build_ext):
    """Says what it has compiled. An editable installation keeps that for the next one; pip would throw it away."""

    done = compiled = 0

    def run(self):
        started = time.monotonic()
        if not (self.inplace or self.editable_mode or BUILD):  # a wheel
            self.extensions = [ext for ext in self.extensions if not ext.name.startswith(PROBES)]
        super().run()
        if self.compiled:
            print(f"compiled {self.compiled} modules in {time.monotonic() - started:.0f} s", flush=True)

    def finalize_options(self):
        super().finalize_options()
        if self.inplace:
            tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
            self.build_lib, self.build_temp = f"{BASE}/lib.{tag}", f"{BASE}/temp.{tag}"

    def build_extension(self, ext):
        path = os.path.join(self.build_lib, self.get_ext_filename(ext.name))
        before = os.path.exists(path) and os.stat(path).st_mtime_ns
        started = time.monotonic()
        super().build_extension(ext)
        self.done += 1
        if before != os.stat(path).st_mtime_ns:
            self.compiled += 1
            took = time.monotonic() - started
            print(f"  {self.done:2} of {len(SOURCES)}: compiled {ext.name} in {took:.0f} s", flush=True)


setup(
    cmdclass={"build_ext": BuildExtensions},
    ext_modules=cythonize(
        extensions,
        compiler_directives=DIRECTIVES,
        build_dir=f"build/{BUILD or 'cython'}",
        nthreads=(os.cpu_count() or 1) if multiprocessing.get_start_method() == "fork" else 0,  # others run this file
        show_all_warnings=False,
    ),
    options={
        "build": {"build_base": BASE},
        "build_ext": {"parallel": os.cpu_count() or 1},
    },
)
