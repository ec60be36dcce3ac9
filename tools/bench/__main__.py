"""python -m xtree.tools.bench [substrate | index | layout]: measures, from a checkout (make bench)."""

from xtree.tools.bench.cli import bench

if __name__ == "__main__":
    bench(prog_name="bench")
