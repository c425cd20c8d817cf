"""What LoRAFusion computes for one job, as a flat loop: to be read, and to be compared with.

    python docs/single_job_loop.py --base FOLDER --data rows.jsonl --dropout 0.05 --steps 20

The system packs many jobs into shared microbatches, fuses their products, keeps their optimizers
apart, saves and resumes. None of that may change what is computed here, one sample at a time, with
torch, transformers and a tokenizer. A test holds losses and weights equal within 1e-9 in float64.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


def mix(z):
    """SplitMix64's finaliser: any change of the input changes half of the output's bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash64(*words):
    """Fold integers, or arrays of them, into 64 bits (an array): all that is random comes from it.

    No generator has state, so what is drawn for a sample, a step or a module is the same whatever
    else is drawn before or beside it. That is why neighbours and interruptions change nothing.
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        state = mix((state ^ np.asarray(word, np.uint64)) + GOLDEN)
    return state


def module_key(name):
    """64 bits of a module's full name, such as model.layers.0.self_attn.q_proj."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def keep_mask(keys_T, columns, threshold):
    """The elements of a LoRA input that are kept, bool [T, columns].

    One hash serves four columns: its 16-bit lanes, low lane first, are compared with the threshold.
    """
    groups = np.arange(1, -(-columns // 4) + 1, dtype=np.uint64)
    lanes = mix(keys_T[:, None] + groups * GOLDEN).astype("<u8").view("<u2")
    return torch.from_numpy(lanes[:, :columns] >= threshold)


def train(args):
    """Losses and gradient norms, step by step, and the trained factors by name."""
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=getattr(torch, args.dtype))
    model.eval().requires_grad_(False)  # the base is frozen, and its own dropouts are off
    tokenizer = AutoTokenizer.from_pretrained(args.base)

    # --- Data. The prompt is tokenised alone, as at inference; the answer and the end-of-sequence
    # token behind it are what is trained. A row whose answer is cut away altogether is left out.
    samples = []  # (tokens, how many of them are prompt)
    for line in Path(args.data).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        tokens = [*prompt, *answer, tokenizer.eos_token_id][: args.max_seq_len]
        if len(prompt) < len(tokens):
            samples.append((torch.tensor(tokens), len(prompt)))

    # --- The adapter. A starts uniform as in PEFT (Kaiming with a = sqrt(5)), drawn in float32 from
    # a seed that depends on the job's seed and the module's name alone; B starts at zero, so that
    # the base's output is unchanged at first. Both are float32 at least, whatever the base is.
    factors = {}  # name of the linear -> (A [r, in], B [out, r])
    scale = args.alpha / args.rank
    threshold = round(args.dropout * 65536)
    now = {}  # the step and the sample that run, for the dropout mask
    head = model.get_output_embeddings()
    for name, linear in model.named_modules():
        wanted = args.targets == ["all-linear"] or name.rpartition(".")[2] in args.targets
        if not isinstance(linear, torch.nn.Linear) or linear is head or not wanted:
            continue
        seed = int(hash64(args.seed, module_key(name))[0]) >> 1
        bound = 1 / math.sqrt(linear.in_features)
        A = torch.empty(args.rank, linear.in_features, dtype=torch.float32)
        A.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        B = torch.zeros(linear.out_features, args.rank, dtype=dtype)
        A = A.to(dtype)
        factors[name] = (A.requires_grad_(), B.requires_grad_())

        def add_lora(linear, inputs, y, name=name):
            # Y = X Wᵀ + s · (D(X) Aᵀ) Bᵀ, where D drops single elements of X.
            A, B = factors[name]
            x = inputs[0].to(A.dtype)
            if threshold:
                rows = np.arange(x.shape[1], dtype=np.uint64)  # positions in the sample
                keys = hash64(args.seed, now["step"], module_key(name), now["sample"], rows)
                x = x * keep_mask(keys, x.shape[2], threshold) * (65536 / (65536 - threshold))
            return (y + scale * (x @ A.T) @ B.T).to(y.dtype)

        linear.register_forward_hook(add_lora)

    # --- Order. Every epoch goes once through the samples, in the order of their hashes; its last
    # batch is as small as it comes out, never dropped.
    batches = []
    for epoch in range(args.steps):
        stream = hash64(args.seed, 1, epoch)  # 1: the purpose, so that other draws are unrelated
        hashes = mix(np.arange(1, len(samples) + 1, dtype=np.uint64) * GOLDEN + stream)
        order = np.argsort(hashes, kind="stable").tolist()
        batches += [order[i : i + args.batch_size] for i in range(0, len(order), args.batch_size)]
        if len(batches) >= args.steps:
            break

    parameters = [tensor for pair in factors.values() for tensor in pair]
    adamw = torch.optim.AdamW(parameters, betas=(0.9, 0.999), eps=1e-8, weight_decay=args.decay)
    losses, norms = [], []
    for step, batch in enumerate(batches[: args.steps], start=1):
        # --- Loss: the mean over the trained tokens of the whole global batch. The denominator is
        # known before the first sample runs, so samples may be cut into microbatches at will.
        trained_tokens = sum(len(samples[index][0]) - samples[index][1] for index in batch)
        loss = 0.0
        for index in batch:
            tokens, prompt = samples[index]
            now.update(step=step, sample=index)
            # The last token is a target and never an input.
            logits = model(input_ids=tokens[None, :-1]).logits[0, prompt - 1 :]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            part = F.cross_entropy(logits, tokens[prompt:], reduction="sum") / trained_tokens
            part.backward()  # gradients of the samples are summed
            loss += part.item()

        # --- Schedule: linear warm-up from 0, then a cosine that reaches 0 after the last step. It
        # is a function of the step, so there is no state to save.
        rate, done = args.lr, step - 1
        if done < args.warmup:
            rate *= done / args.warmup
        else:
            progress = (done - args.warmup) / max(1, args.steps - args.warmup)
            rate *= 0.5 * (1 + math.cos(math.pi * progress))

        # --- Clipping by the norm of this job's gradient alone, then AdamW.
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, args.max_norm))
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
        adamw.zero_grad()
        losses.append(loss)
        norms.append(norm)
        print(f"step {step:4}  loss {loss:.6f}  rate {rate:.3e}  gradient norm {norm:.4f}")

    trained = {f"{name}.lora_A": A.detach() for name, (A, _) in factors.items()}
    trained |= {f"{name}.lora_B": B.detach() for name, (_, B) in factors.items()}
    return losses, norms, trained


def parse(arguments=None):
    """Options, with the defaults of a job file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", required=True, help="folder or hub id of a causal LM")
    parser.add_argument("--data", required=True, help="jsonl with prompt and completion")
    parser.add_argument("--save", help="safetensors file for the trained factors")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--targets", nargs="+", default=["all-linear"], help="ends of names")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--warmup", type=int, default=0, help="steps")
    parser.add_argument("--decay", type=float, default=0.0)
    parser.add_argument("--max-norm", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    _, _, weights = train(options)
    if options.save:
        save_file(weights, options.save)
