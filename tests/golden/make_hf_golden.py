#!/usr/bin/env python3
"""Tiny random models made by Hugging Face's transformers and peft, and what these libraries compute with them.

    make_hf_golden.py OUT                   writes OUT/FAMILY/... (tests/golden/hf holds one such run)
    make_hf_golden.py --verify GOLDEN SAVED loads what tests/test_parity.c saved and compares

Each OUT/FAMILY is a model directory as save_pretrained writes it, with
    expected.json           packages, the sequences, greedy continuations, stop tokens
    expected.safetensors    logits [all tokens, vocabulary], logprobs of each token but the first of a sequence,
                            grad.NAME: gradient of the mean negative log-prob by every parameter
and OUT/FAMILY/lora an adapter directory of peft with the same two files, merged.logits among them.
Needs torch, transformers, safetensors and peft. Single precision on one thread, weights from a fixed seed."""
import copy
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

NEW_TOKENS = 20
SEQUENCE_LENGTHS = (9, 1, 14, 2)

LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
# name: (config class, its fields, type of the stored weights, bytes of a shard, fields of a LoRA adapter)
FAMILIES = {
    "gpt2": ("GPT2Config", dict(vocab_size=31, n_embd=15, n_head=3, n_layer=2, n_positions=48, bos_token_id=30, eos_token_id=30),
             torch.float32, None, dict(r=2, lora_alpha=5, target_modules=["c_attn", "mlp.c_proj"])),
    "llama2": ("LlamaConfig", dict(vocab_size=29, hidden_size=16, intermediate_size=27, num_hidden_layers=2, num_attention_heads=4,
                                   max_position_embeddings=48, rms_norm_eps=1e-5), torch.float32, None, None),
    "llama3": ("LlamaConfig", dict(vocab_size=37, hidden_size=20, intermediate_size=25, num_hidden_layers=2, num_attention_heads=4,
                                   num_key_value_heads=2, head_dim=10, max_position_embeddings=64, rms_norm_eps=1e-5,
                                   tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE, eos_token_id=[2, 5, 7]),
               torch.float32, None, dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])),
    "mistral": ("MistralConfig", dict(vocab_size=33, hidden_size=18, intermediate_size=29, num_hidden_layers=3, num_attention_heads=6,
                                      num_key_value_heads=2, head_dim=6, max_position_embeddings=48, sliding_window=None),
                torch.bfloat16, "9KB", None),
    "qwen2": ("Qwen2Config", dict(vocab_size=35, hidden_size=20, intermediate_size=23, num_hidden_layers=2, num_attention_heads=5,
                                  num_key_value_heads=1, max_position_embeddings=48, tie_word_embeddings=True), torch.float16, None, None),
    "qwen3": ("Qwen3Config", dict(vocab_size=27, hidden_size=22, intermediate_size=19, num_hidden_layers=2, num_attention_heads=4,
                                  num_key_value_heads=2, head_dim=8, max_position_embeddings=48, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
              torch.float32, "12KB", dict(r=4, lora_alpha=4, use_rslora=True, target_modules=["k_proj", "o_proj", "gate_proj", "up_proj"])),
    "smollm2": ("LlamaConfig", dict(vocab_size=39, hidden_size=18, intermediate_size=31, num_hidden_layers=2, num_attention_heads=3,
                                    num_key_value_heads=1, max_position_embeddings=48, rms_norm_eps=1e-5, tie_word_embeddings=True,
                                    rope_parameters={"rope_type": "default", "rope_theta": 100000.0}), torch.float32, None, None),
    "smollm3": ("SmolLM3Config", dict(vocab_size=25, hidden_size=16, intermediate_size=21, num_hidden_layers=4, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=48, no_rope_layer_interval=2,
                                      bos_token_id=1, eos_token_id=2, pad_token_id=0,
                                      rope_parameters={"rope_type": "default", "rope_theta": 5000000.0}), torch.float32, None, None),
}


def shake(model, seed):
    """Random weights of every parameter, far from their initial values, so that none is without effect."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if p.dim() == 2:
                embedding = "embed" in name or "wte" in name or "wpe" in name
                p.copy_(noise * (0.5 if embedding else 2.0 / p.shape[1 if not name.startswith("transformer.h") else 0] ** 0.5))
            else:
                p.copy_(noise * 0.2 + (0.0 if name.endswith("bias") else 1.0))


def logits_of(model, sequences):
    return [model(input_ids=torch.tensor([s])).logits[0] for s in sequences]


def evaluate(model, sequences, parameters):
    """Logits, log-probs and the gradients of the mean negative log-prob over all targets of all sequences."""
    model.zero_grad(set_to_none=True)
    logits = logits_of(model, sequences)
    logprobs = [torch.log_softmax(l, -1)[torch.arange(len(s) - 1), torch.tensor(s[1:], dtype=torch.long)]
                for l, s in zip(logits, sequences)]
    logprobs = torch.cat(logprobs)
    (-logprobs.mean()).backward()
    out = {"logits": torch.cat(logits).detach().contiguous(), "logprobs": logprobs.detach().contiguous()}
    for name, p in parameters:
        if p.requires_grad:
            assert p.grad is not None and p.grad.abs().max() > 0, name
            out["grad." + name] = p.grad.detach().clone().contiguous()
    return out


def greedy(model, prompt):
    """generate() with and without cache; None if they differ or a choice is too close to call."""
    ids = torch.tensor([prompt])
    runs = [model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, use_cache=c)[0].tolist()
            for c in (True, False)]
    top = logits_of(model, [runs[0]])[0].topk(2).values
    if runs[0] != runs[1] or (top[:, 0] - top[:, 1])[len(prompt) - 1:-1].min() < 1e-2:
        return None
    return runs[0][len(prompt):]


def versions():
    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}


def make_model(kind, fields, dtype, seed):
    config = getattr(transformers, kind)(**fields)
    config.use_cache = True
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    shake(model, seed)
    with torch.no_grad():
        for p in model.parameters():                # weights that the stored type holds exactly; buffers stay float32
            p.copy_(p.to(dtype).float())
    return model.eval()


def make_family(name, out):
    kind, fields, dtype, shard, lora = FAMILIES[name]
    for seed in range(1, 300):                       # the first seed whose greedy choices are clear and varied
        model = make_model(kind, fields, dtype, seed)
        model.generation_config.pad_token_id = 0
        if isinstance(fields.get("eos_token_id"), list):
            model.generation_config.eos_token_id = fields["eos_token_id"]
        g = torch.Generator().manual_seed(seed)
        # transformers gives the embedding of pad_token_id no gradient; here nothing is padded, so no token is it
        first = 1 if fields.get("pad_token_id") == 0 else 0
        sequences = [torch.randint(first, fields["vocab_size"], (n,), generator=g).tolist() for n in SEQUENCE_LENGTHS]
        texts = [greedy(model, s) for s in sequences]
        if None not in texts and max(len(set(t)) for t in texts) >= 7:
            break
    else:
        raise SystemExit(name + ": no seed gives clear greedy choices")
    expected = evaluate(model, sequences, model.named_parameters())
    directory = os.path.join(out, name)
    stored = copy.deepcopy(model).to(dtype)
    stored.save_pretrained(directory, **({"max_shard_size": shard} if shard else {}))
    stop = model.generation_config.eos_token_id
    note = {"made_by": versions(), "seed": seed, "sequences": sequences, "greedy": texts,
            "stop": stop if isinstance(stop, list) else [] if stop is None else [stop]}
    if lora:
        make_lora(model, lora, seed, sequences, os.path.join(directory, "lora"))
    save_file(expected, os.path.join(directory, "expected.safetensors"))
    with open(os.path.join(directory, "expected.json"), "w") as f:
        json.dump(note, f, separators=(",", ":"))
        f.write("\n")
    print("%-8s seed %d, %d tensors, %s" % (name, seed, len(expected), "with adapter" if lora else ""))


def make_lora(model, fields, seed, sequences, directory):
    conv1d = any(m.startswith("c_") for m in fields["target_modules"])
    config = peft.LoraConfig(task_type="CAUSAL_LM", bias="none", lora_dropout=0.0, fan_in_fan_out=conv1d, **fields)
    adapted = peft.get_peft_model(model, config).eval()
    g = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for n, p in adapted.named_parameters():
            if "lora_" in n:
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    named = [(n.replace("base_model.model.", "", 1).replace(".default.", "."), p) for n, p in adapted.named_parameters()]
    expected = evaluate(adapted, sequences, named)
    adapted.save_pretrained(directory)
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        expected["merged.logits"] = torch.cat(logits_of(merged, sequences)).contiguous()
    save_file(expected, os.path.join(directory, "expected.safetensors"))
    readme = os.path.join(directory, "README.md")
    if os.path.exists(readme):
        os.remove(readme)


def worst(got, want):
    """Largest difference over the largest expected value: the measure of tests/test_parity.c."""
    return ((got - want).abs().max() / want.abs().max()).item()


def same_config(a, b):
    skip = {"dtype", "transformers_version", "_name_or_path", "use_cache", "initializer_range"}
    a, b = a.to_dict(), b.to_dict()
    return [k for k in sorted(set(a) | set(b)) if k not in skip and a.get(k) != b.get(k)]


def verify(golden, saved):
    """Every directory under SAVED, named FAMILY-WHAT, must load and give the logits of its ours.safetensors."""
    passed = failed = 0
    for entry in sorted(os.listdir(saved)):
        directory, family = os.path.join(saved, entry), entry.split("-")[0]
        base = os.path.join(golden, family)
        ours = load_file(os.path.join(directory, "ours.safetensors"))
        sequences = json.load(open(os.path.join(base, "expected.json")))["sequences"]
        source = base if "-lora" in entry else directory
        model, info = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        problems = ["%s: %s" % (k, v) for k, v in info.items() if v]
        if "-lora" in entry:
            model = peft.PeftModel.from_pretrained(model, directory)
        else:
            original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            problems += ["config.json: %s differs" % k for k in same_config(model.config, original.config)]
            for field in ("eos_token_id", "bos_token_id", "pad_token_id", "do_sample"):
                if getattr(model.generation_config, field) != getattr(original.generation_config, field):
                    problems.append("generation_config.json: %s differs" % field)
        with torch.no_grad():
            logits = torch.cat(logits_of(model.eval(), sequences))
        difference = worst(logits, ours["logits"])
        if not difference <= 1e-4:
            problems.append("logits differ by %.3g" % difference)
        for p in problems:
            print("  " + p)
        print("%s %s: logits within %.2g" % ("FAIL" if problems else "ok", entry, difference))
        failed += bool(problems)
        passed += not problems
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed or not passed else 0


def main(arguments):
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if len(arguments) == 3 and arguments[0] == "--verify":
        return verify(arguments[1], arguments[2])
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write(__doc__ + "\n")
        return 2
    for name in FAMILIES:
        make_family(name, arguments[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
