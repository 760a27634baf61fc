#!/usr/bin/env python3
"""Which tokens transformers' sampling controls keep of random logits.

    make_sampler_golden.py OUT.json [N]     N cases; without it 10000 (tests/golden/sampler.json holds 250)

Each case: logits (null = minus infinity), temperature, top_k, top_p, min_p (0, 0, 1, 0 = off) and which logits can be drawn, in ascending order: of equal ones at the edge
of top-p transformers keeps the right number, but which of them is up to the sort of the processor. The
processors and their order are those that generate() of a model makes of a GenerationConfig. Needs torch and transformers."""
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config

ROUND_P = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.25, 0.1)
ROUND_MIN_P = (0.0, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0)


def float_of(value):
    """The double that Python reads where C reads the same text as a float."""
    return float("%.7g" % value)


def draw(rng):
    n = int(rng.integers(1, 41))
    kind = rng.integers(5)
    z = rng.normal(size=n) * (0.1 + 6 * rng.random())
    if kind == 1:
        z = np.floor(z)                                     # few values, so that many are equal
    elif kind == 2:
        z = np.full(n, 1.5)
    elif kind == 3:
        z[1:][rng.random(n - 1) < 0.3] = -np.inf
    elif kind == 4:
        z = np.log(1.0 + rng.integers(4, size=n))
    return {"logits": [float(x) for x in z.astype(np.float32)],
            "temperature": float_of(np.exp(2 * rng.normal())) if rng.integers(3) else 1.0,
            "top_k": int(rng.integers(1, n + 4)) if rng.integers(3) else 0,
            "top_p": float(rng.choice(ROUND_P)) if rng.integers(2) else float_of(0.001 + 0.998 * rng.random()),
            "min_p": float(rng.choice(ROUND_MIN_P)) if rng.integers(2) else float_of(rng.random() * rng.random())}


def kept(model, case):
    scores = torch.tensor([case["logits"]], dtype=torch.float32)
    config = GenerationConfig(do_sample=True, **{name: case[name] for name in ("temperature", "top_k", "top_p", "min_p")})
    for processor in model._get_logits_processor(generation_config=config, input_ids_seq_length=1):
        scores = processor(torch.zeros(1, 1, dtype=torch.long), scores)
    return sorted(z for z, score in zip(case["logits"], scores[0].tolist()) if score != -np.inf)


def main(arguments):
    if len(arguments) not in (1, 2) or arguments[0].startswith("-"):
        sys.stderr.write(__doc__ + "\n")
        return 2
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=8, n_embd=8, n_head=1, n_layer=1, n_positions=8, bos_token_id=0, eos_token_id=0))
    rng = np.random.default_rng(5)
    os.makedirs(os.path.dirname(arguments[0]) or ".", exist_ok=True)
    with open(arguments[0], "w") as out:
        out.write('{"torch": "%s", "transformers": "%s", "cases": [' % (torch.__version__, transformers.__version__))
        for i in range(int(arguments[1]) if len(arguments) == 2 else 10000):
            case = draw(rng)
            case["kept"] = [float("%.9g" % z) for z in kept(model, case)]
            case["logits"] = [None if z == -np.inf else float("%.9g" % z) for z in case["logits"]]
            out.write(("," if i else "") + "\n" + json.dumps(case))
        out.write("\n]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
