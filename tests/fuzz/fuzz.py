"""Feeds one target for some seconds, led by the coverage of the Python code: python tests/fuzz/fuzz.py TARGET SECONDS

Ends with a status other than 0 at the first finding, whose bytes are then in a file `crash-...` of the directory that
FUZZ_FINDINGS names, or of the current one. The compiled modules aren't instrumented.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import atheris

with atheris.instrument_imports(include=["xtree"]):
    import targets


def main() -> int:
    name, seconds = sys.argv[1], sys.argv[2]
    place = targets.Workplace()
    try:
        pid = os.fork()  # the fuzzer ends its process without ever returning
        if pid == 0:
            fuzz(name, seconds, place)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        place.remove()


def fuzz(name: str, seconds: str, place: targets.Workplace) -> NoReturn:
    corpus = place.folder / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(targets.seeds(place)[name]):
        (corpus / f"seed-{i}").write_bytes(seed)
    findings = os.path.join(os.environ.get("FUZZ_FINDINGS", "."), "")
    options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=30", "-rss_limit_mb=2048", "-verbosity=0",
               "-print_final_stats=1", f"-artifact_prefix={findings}"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: targets.run(place, name, data))
    atheris.Fuzz()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
