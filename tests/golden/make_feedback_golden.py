#!/usr/bin/env python3
"""Expected values of the methods that learn from feedback, on the small batch of rl.json: feedback.json.

    make_feedback_golden.py > feedback.json     values, and d loss / d log-prob, each compared with a central difference

o and l are "old" and "logp" of the batch, q is its "ref". "token-mean" divides by all tokens in the loss. Formulas:
critique_grpo arXiv 2506.03106; rltf_sd 2602.02482; sdpo 2601.20802 and TRL's experimental sdpo; opd verl and MiniLLM,
2306.08543."""
import json
import os
import sys
from math import exp

HERE = os.path.dirname(os.path.abspath(__file__))
IN = json.load(open(os.path.join(HERE, "rl.json")))["inputs"]
LOGP, OLD, REF, MASK = IN["logp"], IN["old"], IN["ref"], IN["mask"]
B, T = len(MASK), len(MASK[0])
TOKENS = sum(map(sum, MASK))
REWARD = [1.0, 0.0, 0.0]         # of the three responses; the last is y1, the answer after feedback


def clip(x, low, high):
    return min(max(x, low), high)


def ppo(l, o, a, low=0.2, high=0.2):
    r = exp(clip(l - o, -20, 20))
    plain, cut = -a * r, -a * clip(r, 1 - low, 1 + high)
    return (plain, -a * r) if plain >= cut else (cut, 0.0)


def luffy(l, a, gamma=0.1):
    p = exp(l)
    return -a * p / (p + gamma), -a * p * gamma / (p + gamma) ** 2


def sdpo(l, o, q, c=2.0, frozen=None):
    """sg(l - q) l min(exp(sg(l - o)), c); frozen: where sg() was taken."""
    f = l if frozen is None else frozen
    w = (f - q) * min(exp(clip(f - o, -20, 20)), c)
    return w * l, w


def batch(fn, name, tokens=TOKENS, used=None):
    """Token mean over the rows used, and its gradient, compared with a difference in which sg() stays."""
    loss, gradient, h = 0.0, [], 1e-6
    for i in range(B):
        row = []
        for t in range(T):
            if not MASK[i][t] or (used and i not in used):
                row.append(0.0)
                continue
            l = LOGP[i][t]
            value, slope = fn(i, t, l, l)
            number = (fn(i, t, l + h, l)[0] - fn(i, t, l - h, l)[0]) / (2 * h)
            if abs(number - slope) > 1e-5 * (1 + abs(slope)):
                sys.exit("gradient of %s, row %d, token %d: %g, by difference %g" % (name, i, t, slope, number))
            loss += value / tokens
            row.append(slope / tokens)
        gradient.append(row)
    return {"loss": loss, "dloss_dlogp": gradient}


def later(i, t, gamma):
    """MiniLLM: sum over k >= t of gamma^(k - t) (q - o)."""
    n = sum(MASK[i])
    return sum(gamma ** (k - t) * (REF[i][k] - OLD[i][k]) for k in range(t, n))


def make():
    mean = sum(REWARD) / B
    critique = [r - mean for r in REWARD]
    first = sum(REWARD[:2]) / 2
    rltf = [r - first for r in REWARD]
    adv = IN["adv"]
    own = [0, 1]                 # rows with a sibling or feedback in the example of sdpo
    n_own = sum(sum(MASK[i]) for i in own)
    blend = lambda i, t, l, f: tuple(0.5 * a + 0.5 * b for a, b in zip(
        ppo(l, OLD[i][t], adv[i]), sdpo(l, OLD[i][t], REF[i][t], frozen=f)))
    return {
        "inputs": {"reward": REWARD, "refined_row": 2},
        "critique_grpo": dict(batch(lambda i, t, l, f: luffy(l, critique[i]) if i == 2 else ppo(l, OLD[i][t], critique[i]),
                                    "critique_grpo"), advantages=critique),
        "rltf_sd": dict(batch(lambda i, t, l, f: (-rltf[i] * l, -rltf[i]) if i == 2 else ppo(l, OLD[i][t], rltf[i]),
                              "rltf_sd"), advantages=rltf),
        "sdpo": batch(lambda i, t, l, f: sdpo(l, OLD[i][t], REF[i][t], frozen=f), "sdpo"),
        "sdpo_two_rows": batch(lambda i, t, l, f: sdpo(l, OLD[i][t], REF[i][t], frozen=f), "sdpo", n_own, own),
        "sdpo_clip_1.1": batch(lambda i, t, l, f: sdpo(l, OLD[i][t], REF[i][t], 1.1, f), "sdpo"),
        "sdpo_weight_0.5": batch(blend, "sdpo"),
        "srpo_row_2_grpo": batch(lambda i, t, l, f: ppo(l, OLD[i][t], adv[i]) if i == 2 else
                                 sdpo(l, OLD[i][t], REF[i][t], frozen=f), "srpo"),
        "opd": batch(lambda i, t, l, f: ppo(l, OLD[i][t], REF[i][t] - OLD[i][t]), "opd"),
        "opd_gamma_0.5": batch(lambda i, t, l, f: ppo(l, OLD[i][t], later(i, t, 0.5)), "opd"),
        "raw_ratio": (lambda r: {"mean": sum(r) / len(r), "min": min(r), "max": max(r),
                                 "outside": sum(x < 0.9 or x > 1.1 for x in r) / len(r)})(
            [exp(OLD[i][t] - IN["sampler"][i][t]) for i in range(B) for t in range(T) if MASK[i][t]])}


if __name__ == "__main__":
    json.dump(make(), sys.stdout, indent=1, allow_nan=False)
    print()
