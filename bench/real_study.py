#!/usr/bin/env python3
"""bench/real_study.py: what a pretrained model learns from feedback on a task that it can half do.

    real_study.py --model DIR --out FOLDER [--kind sum3] [--seeds 5] [--only free,kept] [--quick]
    real_study.py --model DIR --out FOLDER --gates     before any training: what the model can do of each kind, alone and as teacher

Two variants of a kind of examples/data/questions.py:
    free    the student answers as it likes: a worked answer without an attempt cannot be told from a correction
    kept    each response begins with "The answer is", so that an attempt is always made first

For each: a sweep of learning rates for each method, on questions that are never held out elsewhere, by one rule (accuracy
at the sampling temperature, the lower rate where equal); then all seeds at the chosen rates: GRPO with as many rollouts
and, in a run of its own, with as many sampled tokens as ThinkTuning, ThinkTuning with the three shapings, SFT on the
teacher's right outputs, the base behind worked turns. Every run is one of build/thinktune and goes on where it stopped;
so does this. FOLDER gets table.md, and each run's report. Standard library only."""
import argparse
import json
import math
import pathlib
import subprocess
import sys

RATES = ["1e-4", "2e-4", "5e-4"]
VARIANTS = {"free": [], "kept": ["--prefill", "The answer is"]}
HELD_OUT, STEPS = 128, 40
ARMS = "grpo,thinktune,formula,off,sft,worked"
# Student's t at 97.5 %, by degrees of freedom.
T_975 = [0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
ROWS = [("base", "base", "seeds"), ("worked", "base behind worked turns", "seeds"), ("grpo", "GRPO, equal rollouts", "seeds"),
        ("grpo", "GRPO, equal tokens", "tokens"), ("thinktune", "ThinkTuning, released shaping", "seeds"),
        ("formula", "ThinkTuning, shaping by formula", "seeds"), ("off", "ThinkTuning, no shaping", "seeds"),
        ("sft", "SFT on the teacher's right outputs", "seeds")]
COLUMNS = [("sampled_accuracy", "T = 0.7"), ("greedy_accuracy", "greedy"), ("attempt_rate", "attempts"),
           ("first_accuracy", "first try"), ("works_first", "works first"), ("correction_rate", "correction"),
           ("spoil_rate", "spoil"), ("shift_accuracy", "shift"), ("mean_length", "length")]


def options(given, data, questions):
    """What all runs have in common: the pilots' settings. The teacher guides nearly all at first and leaves before the end."""
    steps = 2 if given.quick else STEPS
    n = len((data / questions).read_text().splitlines())
    held_out = 8 if given.quick else min(HELD_OUT, n // 2)      # of letters there are 103 questions
    return [
        given.program, "--model", given.model, "--data", data / questions, "--hold-out", held_out,
        "--questions", held_out, "--gate-questions", 4 if given.quick else min(64, held_out),
        "--chat", "--end-token", given.end_token, "--few-shot", data / "turns.jsonl", "--prompt", "{question}",
        "--teacher-examples", data / "teacher.txt", "--close-tags", "--temperature", "0.7", "--share-prompts",
        "--lora-rank", 16, "--prompts", 2 if given.quick else 8, "--num-generations", 5, "--max-length", 72,
        "--teacher-length", 64, "--micro-batch-tokens", 4096, "--init-pct", 1, "--schedule", "cosine", "--steps", steps,
        "--schedule-steps", 3 * steps,
    ]


def run(given, command, out, arms, *more):
    """One run of thinktune, and what it found: summary.json."""
    summary = out / "summary.json"
    if not summary.exists():
        print(f"\n== {out.relative_to(given.out)}: {arms}", flush=True)
        words = [str(word) for word in [*command, "--arms", arms, "--out", out, "--resume", *more]]
        if subprocess.run(words).returncode != 0:
            sys.exit(f"real_study.py: {out}: the run above has not ended; the same command goes on")
    return json.loads(summary.read_text())


def write_questions(given, kind, data):
    if not (data / "teacher.txt").exists():
        subprocess.run([sys.executable, given.questions, kind, str(data)], check=True)
    return data


def questions_of(given):
    """Writes the questions, and for the sweep those that no seed is ever measured with."""
    data = write_questions(given, given.kind, given.out / "questions")
    lines = (data / "questions.jsonl").read_text().splitlines(keepends=True)
    (data / "sweep.jsonl").write_text("".join(lines[:-HELD_OUT]))
    return data


def sweep(given, variant, data):
    """The rate of each method: {"grpo": "1e-4", ...}; "tokens": GRPO's with as many tokens, and its steps."""
    chosen, command = {}, options(given, data, "sweep.jsonl") + VARIANTS[variant]
    out, found = given.out / variant / "sweep", {}
    for rate in RATES:
        found[rate] = run(given, command, out / rate, "grpo,thinktune,sft", "--lr", rate)["methods"]
    for method in ("grpo", "thinktune", "sft"):
        chosen[method] = max(RATES, key=lambda rate: (found[rate][method]["sampled_accuracy"]["mean"], -float(rate)))
    tokens = found[chosen["thinktune"]]["thinktune"]["num_tokens"] / found[chosen["grpo"]]["grpo"]["num_tokens"]
    steps = max(1, round((2 if given.quick else STEPS) * tokens))
    long = {rate: run(given, command, out / f"{rate}-tokens", "grpo", "--lr", rate, "--steps", steps)["methods"]
            for rate in RATES}
    best = max(RATES, key=lambda rate: (long[rate]["grpo"]["sampled_accuracy"]["mean"], -float(rate)))
    chosen["tokens"] = [best, steps]
    table = {rate: {**{m: found[rate][m]["sampled_accuracy"]["mean"] for m in ("grpo", "thinktune", "sft")},
                    "tokens": long[rate]["grpo"]["sampled_accuracy"]["mean"]} for rate in RATES}
    (out / "chosen.json").write_text(json.dumps({"chosen": chosen, "accuracy": table}, indent=1) + "\n")
    return chosen


def study(given, variant, data, chosen):
    command = options(given, data, "questions.jsonl") + VARIANTS[variant]
    command += ["--seeds", given.seeds, "--shift", data / "shift.jsonl"]
    rates = ",".join(f"{arm}={chosen['grpo' if arm == 'grpo' else 'sft' if arm == 'sft' else 'thinktune']}"
                     for arm in ARMS.split(",") if arm != "worked")
    rate, steps = chosen["tokens"]
    out = given.out / variant
    return {"seeds": run(given, command, out / "seeds", ARMS, "--worked", data / "worked.jsonl", "--arm-lr", rates),
            "tokens": run(given, command, out / "tokens", "grpo", "--lr", rate, "--steps", steps)}


def cell(figure, digits):
    """mean ± half of the 95 % interval over seeds"""
    values = figure["values"]
    if len(values) < 2:
        return f"{figure['mean']:.{digits}f}"
    half = T_975[min(len(values) - 1, len(T_975) - 1)] * figure["sd"] / math.sqrt(len(values))
    return f"{figure['mean']:.{digits}f} ± {half:.{digits}f}"


def table(found, variant):
    yield f"### {variant}\n"
    yield "| student alone, held out | " + " | ".join(head for _, head in COLUMNS) + " | tokens |"
    yield "|---|" + "---:|" * (len(COLUMNS) + 1)
    for method, text, part in ROWS:
        figures = found[part]["methods"][method]
        cells = [cell(figures[key], 1 if key == "mean_length" else 3) for key, _ in COLUMNS]
        tokens = figures["num_tokens"]
        yield f"| {text} | " + " | ".join(cells) + (f" | {tokens / 1e3:.0f} k |" if tokens else " | – |")
    gates = found["seeds"]["gate"]
    yield f"\nTeacher's hit {sum(gate['teacher_hit'] for gate in gates) / len(gates):.3f}, over {len(gates)} seeds.\n"


def gates(given):
    """One row a kind. A kind is worth a run where the teacher ends right clearly more often than the student alone."""
    listed = subprocess.run([sys.executable, given.questions, "--list"], check=True, capture_output=True, text=True).stdout
    yield "| kind | question | alone | greedy | behind worked turns | greedy | teacher's hit | rescues | spoils | blank |"
    yield "|---|---|" + "---:|" * 8
    for line in listed.splitlines():
        kind, question = line.split(None, 1)
        data = write_questions(given, kind, given.out / kind / "questions")
        command = options(given, data, "questions.jsonl") + ["--max-length", 96, "--teacher-length", 88]
        found = run(given, command, given.out / kind / "gate", "worked", "--worked", data / "worked.jsonl")
        cells = [found["methods"][method][key]["mean"] for method in ("base", "worked")
                 for key in ("sampled_accuracy", "greedy_accuracy")]
        gate = found["gate"][0]
        cells += [gate["teacher_hit"], gate["rescue_rate"], gate["spoil_rate"], 1 - gate["said"]]
        yield f"| {kind} | {question.rpartition('?')[0]}? | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"


def main():
    here = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--kind", default="sum3")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--end-token", default="<|im_end|>")
    parser.add_argument("--gates", action="store_true", help="no training: a table of all kinds")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; numbers mean nothing")
    given = parser.parse_args()
    given.program, given.questions = here / "build" / "thinktune", here / "examples" / "data" / "questions.py"
    for variant in given.only.split(","):
        if variant not in VARIANTS:
            parser.error(f"--only names {variant}, expected of {', '.join(VARIANTS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.gates:
        lines = list(gates(given))
        (given.out / "gates.md").write_text("\n".join(lines) + "\n")
        print("\n" + "\n".join(lines))
        return
    data, lines = questions_of(given), []
    for variant in given.only.split(","):
        lines += table(study(given, variant, data, sweep(given, variant, data)), variant)
        (given.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
