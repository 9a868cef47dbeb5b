#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes qomni-nano: data, training, checkpoint, acceptance test, its page.

    nano.py WORK                    every stage that is not done yet
    nano.py WORK STAGE [STAGE...]   these, done or not
    nano.py WORK --adopt            begins with the weights in the tree

Training that was cut off goes on where it was; a stage that has finished learns
on only when its script is given more steps than it has done (docs/nano.md).
Stages that do not need each other run at the same time, as many as there are
processors or --jobs says. WORK keeps everything between runs (about 15 GB);
deleting it starts anew.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.dirname(os.path.dirname(HERE))
MODEL = os.path.join(TREE, "models", "qomni-nano")
BEGIN, END = "<!-- results -->", "<!-- end of results -->"

FALLS_SHORT = 3  # judge.py's exit status when the model is not good enough

STAGES = {  # name: (what it does, the command, the stages it needs)
    "sound": ("voices say the training sentences", ["sound.py"], []),
    "see": ("the vision tower learns things and places", ["see.py"], []),
    "hear": ("the audio tower learns words", ["hear.py"], ["sound"]),
    "imitate": ("the Thinker learns from imitated towers", ["think.py"], []),
    "voice": ("Code2Wav learns two voices", ["vocoder.py"], []),
    "think": ("the Thinker learns from the real ones", ["think.py", "real"],
              ["sound", "hear", "see", "imitate"]),
    "talk": ("the Talker learns to read aloud", ["talk.py"], ["voice"]),
    "heldout": ("other voices ask, other pictures are drawn", ["heldout.py"], []),
    "export": ("the checkpoint is written", ["nano.py", "--export"],
               ["think", "talk"]),
    "judge": ("the engine answers them", ["judge.py", MODEL],
              ["export", "heldout"]),
    "page": ("the table in docs/nano.md is written", ["nano.py", "--page"],
             ["judge"]),
}


def export(work):
    from checkpoint import Nano
    print(f"{MODEL}: {Nano(work).export(MODEL)} parameters")


def adopt(work):
    from checkpoint import Nano
    Nano(work).adopt(MODEL)
    for name in ("see", "hear", "imitate", "voice", "think", "talk"):
        finish(work, name)


def page(work):
    """The last judgement, into docs/nano.md; all numbers beside the model."""
    shutil.copyfile(os.path.join(work, "report.json"),
                    os.path.join(MODEL, "report.json"))
    told = json.load(open(os.path.join(work, "report.json")))["judge"]
    lines = ["| | measured | must | aim |", "| --- | ---: | ---: | ---: |"]
    for row in told["table"]:
        value = f"{row['value']:.3f}"
        if not row["met"]:
            value = f"**{value}**"
        lines.append(f"| {row['what']} | {value} | {row['must']:.3f} | "
                     f"{row['aim']:.3f} |")
    lines += ["", f"{told['cases']} conversations, {told['listened']} of them "
              f"listened to, {told['compared']} compared with",
              "transformers. What must still be reached is in bold. The "
              "recogniser gets",
              f"{told['original']:.3f} of the words of the original voices."]
    path = os.path.join(TREE, "docs", "nano.md")
    text = open(path).read()
    first, rest = text.split(BEGIN)
    text = "\n".join([first + BEGIN, *lines, END + rest.split(END)[1]])
    with open(path, "w") as f:
        f.write(text)


def done(work, name):
    return os.path.join(work, f"{name}.done")


def finish(work, name):
    open(done(work, name), "w").close()


def run(work, names, jobs, qomni):
    """Whether all went well. A judgement that something falls short is told on
    the page as well; any other failure ends all."""
    for name in names:
        for need in STAGES[name][2]:
            if need not in names and not os.path.exists(done(work, need)):
                sys.exit(f"{name} needs {need}, which is not done in {work}")
    # Many small tensors: giving memory back after each costs half the time.
    env = dict(os.environ, MALLOC_MMAP_MAX_="0",
               MALLOC_TRIM_THRESHOLD_="4000000000",
               MALLOC_TOP_PAD_="200000000", OMP_NUM_THREADS="1")
    left, running, short = list(names), {}, False
    while left or running:
        for name in list(left):
            what, command, needs = STAGES[name]
            if len(running) >= jobs or any(n in left or n in running
                                           for n in needs):
                continue
            left.remove(name)
            print(f"--- {name}: {what}", flush=True)
            running[name] = time.time(), subprocess.Popen(
                [sys.executable, os.path.join(HERE, command[0]), work,
                 *command[1:], *(("--qomni", qomni) if name == "judge"
                                 else ())], env=env)
        time.sleep(0.2)
        for name, (started, process) in list(running.items()):
            status = process.poll()
            if status is None:
                continue
            del running[name]
            if status and (name, status) != ("judge", FALLS_SHORT):
                for _, other in running.values():
                    other.terminate()
                sys.exit(f"{name} failed")
            short |= bool(status)
            print(f"--- {name}: {(time.time() - started) / 60:.0f} minutes",
                  flush=True)
            finish(work, name)
    return not short


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("stages", nargs="*", metavar="STAGE",
                        help=", ".join(STAGES))
    parser.add_argument("--jobs", metavar="N", type=int,
                        default=os.cpu_count())
    parser.add_argument("--qomni", metavar="PATH", help="the tool that is judged",
                        default=os.path.join(TREE, "build/tools/qomni"))
    parser.add_argument("--adopt", action="store_true")
    parser.add_argument("--export", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.adopt:
        return adopt(args.work)
    if args.export:
        return export(args.work)
    if args.page:
        return page(args.work)
    for name in args.stages:
        if name not in STAGES:
            parser.error(f"no stage '{name}', there are {', '.join(STAGES)}")
    os.makedirs(args.work, exist_ok=True)
    names = args.stages or [n for n in STAGES
                            if not os.path.exists(done(args.work, n))]
    from checkpoint import Nano
    Nano(args.work)  # what all stages share, before they start side by side
    sys.exit(not run(args.work, names, max(1, args.jobs), args.qomni))


if __name__ == "__main__":
    main()
