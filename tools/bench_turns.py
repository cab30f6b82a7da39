"""Two sides of a comparison that work in turns on one machine: for bench_pytorch.py and bench_diffusers.py."""
import json
import statistics
import subprocess
import sys


class Served:
    """A benchmark program of ours that answers a line of JSON for every line it is asked."""

    def __init__(self, command, first):
        self.name = command[0]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.info = self.ask(first)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} stopped at '{line}'")
        return json.loads(answer)

    def timed(self, line):
        a = self.ask(line)
        return a["wall"][0], a["cpu"][0]


def report(name, threads, ours, theirs, first="ours", second="theirs"):
    """ours, theirs: lists of (wall, cpu); one line with medians of seconds and of the ratio of each pair."""
    m = statistics.median
    ratios = sorted(t[0] / o[0] for o, t in zip(ours, theirs))
    row = dict(name=name, pairs=len(ours), threads=threads, ours=m(o[0] for o in ours), theirs=m(t[0] for t in theirs),
               speedup_wall=m(ratios), speedup_cpu=m(t[1] / o[1] for o, t in zip(ours, theirs)), lowest=ratios[0], highest=ratios[-1],
               ours_cpu_per_wall=m(o[1] / o[0] for o in ours), theirs_cpu_per_wall=m(t[1] / t[0] for t in theirs))
    print(f"{name:<34} {first} {row['ours']:8.4f} s  {second} {row['theirs']:8.4f} s  speed-up {row['speedup_wall']:.3f} "
          f"[{row['lowest']:.2f}, {row['highest']:.2f}] (CPU time {row['speedup_cpu']:.3f})  CPU/wall {row['ours_cpu_per_wall']:.2f} and "
          f"{row['theirs_cpu_per_wall']:.2f}  {row['pairs']} pairs", flush=True)
    return row


def alternate(pairs, first, second):
    """The (wall, cpu) of each side's turns; what else a turn returns is left out."""
    a, b = [], []
    for i in range(pairs):  # A B B A A B ...: neither side always follows the other
        for side, times in ((first, a), (second, b)) if i % 2 == 0 else ((second, b), (first, a)):
            times.append(side()[:2])
    return a, b
