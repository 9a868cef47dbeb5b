#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes qomni-nano: data, training, checkpoint, acceptance test, its page.

    nano.py WORK                    every stage that is not done yet
    nano.py WORK STAGE [STAGE...]   these, done or not
    nano.py WORK --adopt            begins with the weights in the tree

A stage that was cut off goes on where it was. WORK keeps everything between
runs (about 6 GB); deleting it starts anew.
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

STAGES = {  # in an order that works; name: (command, what it does)
    "sound": (["sound.py"], "voices say the training sentences"),
    "hear": (["hear.py"], "the audio tower learns words"),
    "see": (["see.py"], "the vision tower learns things and places"),
    "imitate": (["think.py"], "the Thinker learns from imitated towers"),
    "think": (["think.py", "real"], "the Thinker learns from the real ones"),
    "voice": (["vocoder.py"], "Code2Wav learns two voices"),
    "talk": (["talk.py"], "the Talker learns to read aloud"),
    "export": (["nano.py", "--export"], "the checkpoint is written"),
    "heldout": (["heldout.py"], "questions nobody has trained on are made"),
    "judge": (["judge.py", MODEL], "the engine answers them"),
    "page": (["nano.py", "--page"], "the table in docs/nano.md is written"),
}


def export(work):
    from checkpoint import Nano
    n, missing = Nano(work).export(MODEL)
    print(f"{MODEL}: {n} parameters")
    if missing:
        sys.exit("not trained: " + ", ".join(missing))


def adopt(work):
    from checkpoint import Nano
    Nano(work).adopt(MODEL)


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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("stages", nargs="*", metavar="STAGE",
                        help=", ".join(STAGES))
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
    # Many small tensors: giving memory back after each costs half the time.
    env = dict(os.environ, MALLOC_MMAP_MAX_="0",
               MALLOC_TRIM_THRESHOLD_="4000000000",
               MALLOC_TOP_PAD_="200000000")
    short = 0
    for name in args.stages or STAGES:
        done = os.path.join(args.work, f"{name}.done")
        if not args.stages and os.path.exists(done):
            continue
        command, what = STAGES[name]
        print(f"--- {name}: {what}", flush=True)
        started = time.time()
        status = subprocess.run([sys.executable, os.path.join(HERE, command[0]),
                                 args.work, *command[1:]], env=env).returncode
        if name == "judge":  # what falls short is told, on the page as well
            short = status
        elif status:
            sys.exit(f"{name} failed")
        print(f"--- {name}: {(time.time() - started) / 60:.0f} minutes",
              flush=True)
        open(done, "w").close()
    sys.exit(short)


if __name__ == "__main__":
    main()
