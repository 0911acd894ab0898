"""What `gyrus bench ops --json` calls an operation, and the shapes of its tensors, in the peer's words."""

import math


def named(kind, setup):
    """`op` and `shape` of an entry of gyrus's list; None for an operation that the peer has no counterpart of."""
    translate = OPERATIONS.get(kind["name"])
    if translate is None:
        return None
    op, shape = translate(kind["reads"], kind["writes"], setup)
    return dict(op=op, shape=shape)


def of(found):
    """All entries of what `gyrus bench ops --json` prints, with `op` and `shape` beside what they have; entries that
    are alike in both are one, as often as all of them together."""
    entries = {}
    for kind in found["ops"]:
        name = named(kind, found)
        if name is not None:
            entry = entries.setdefault(str(name), dict(kind, times=0) | name)
            entry["times"] += kind["times"]
    return list(entries.values())


def linear(reads, writes, setup):
    n, k = reads[1]
    op = "linear_gelu" if len(writes) > 1 else "linear_residual" if len(reads) > 3 else "linear"
    return op, product(math.prod(reads[0]) // k, n, k)


def linear_input_grad(reads, writes, setup):
    n, k = reads[1]
    op = "linear_input_grad_gelu" if len(reads) > 2 else "linear_input_grad"
    return op, product(math.prod(reads[0]) // n, n, k)


def linear_weight_grad(reads, writes, setup):
    n, k = writes[0]
    return "linear_weight_grad", product(math.prod(reads[0]) // n, n, k)


def product(rows, n, k):
    return dict(rows=rows, n=n, k=k)


def patch_embed(reads, writes, setup):
    batch, kept, dim = writes[0]
    return "patch_embed", dict(batch=batch, grid=setup["grid"], patch=setup["patch"], kept=kept, dim=dim)


def patch_embed_grad(reads, writes, setup):
    dim, *patch = writes[0]
    return "linear_weight_grad", product(math.prod(reads[1]), dim, math.prod(patch))


def layer_norm(reads, writes, setup):
    return "layer_norm", dict(rows=math.prod(writes[1]), cols=reads[1][0])


def layer_norm_grad(reads, writes, setup):
    shape = dict(rows=math.prod(reads[3]), cols=reads[2][0], skip=len(reads) > 5)
    return "layer_norm_grad", shape


def attention(op, y, log_sum):
    (_, _, dim), (batch, heads, length) = y, log_sum
    return op, dict(batch=batch, length=length, heads=heads, width=dim // heads)


def embed_tokens(op, kept, positions):
    batch, count, dim = kept
    return op, dict(batch=batch, tokens=positions, kept=count, dim=dim)


def append_mask_tokens(op, x, ids):
    (batch, rows, dim), (_, tokens) = x, ids
    return op, dict(batch=batch, tokens=tokens, kept=rows - 1, dim=dim)


def last_tokens(op, all_of, taken):
    (batch, length, dim), (_, count, _) = all_of, taken
    return op, dict(batch=batch, length=length, count=count, dim=dim)


def mean_pool(op, x):
    batch, length, dim = x
    return op, dict(batch=batch, length=length, dim=dim)


def reconstruction_loss(op, ids, setup):
    batch, count = ids
    return op, dict(batch=batch, grid=setup["grid"], patch=setup["patch"], count=count)


def tokens_of(setup):
    return math.prod(n // setup["patch"] for n in setup["grid"])


# By the name of gyrus's operation: of the shapes it reads and writes, in its order, and the step it belongs to.
OPERATIONS = {
    "Linear": linear,
    "LinearInputGrad": linear_input_grad,
    "LinearWeightGrad": linear_weight_grad,
    "PatchEmbed": patch_embed,
    "PatchEmbedGrad": patch_embed_grad,
    "LayerNorm": layer_norm,
    "LayerNormGrad": layer_norm_grad,
    "Attention": lambda r, w, s: attention("attention", *w),
    "AttentionGrad": lambda r, w, s: attention("attention_grad", r[2], r[3]),
    "EmbedTokens": lambda r, w, s: embed_tokens("embed_tokens", r[0], tokens_of(s)),
    "EmbedTokensGrad": lambda r, w, s: embed_tokens("embed_tokens_grad", w[0], tokens_of(s)),
    "AppendMaskTokens": lambda r, w, s: append_mask_tokens("append_mask_tokens", r[0], r[3]),
    "AppendMaskTokensGrad": lambda r, w, s: append_mask_tokens("append_mask_tokens_grad", w[0], r[1]),
    "GatherTokens": lambda r, w, s: last_tokens("last_tokens", r[0], w[0]),
    "GatherTokensGrad": lambda r, w, s: last_tokens("last_tokens_grad", w[0], r[0]),
    "MeanPool": lambda r, w, s: mean_pool("mean_pool", r[0]),
    "MeanPoolGrad": lambda r, w, s: mean_pool("mean_pool_grad", w[0]),
    "Reconstruction": lambda r, w, s: reconstruction_loss("reconstruction_loss", r[2], s),
    "ReconstructionGrad": lambda r, w, s: reconstruction_loss("reconstruction_loss_grad", r[4], s),
    "GradNorm": lambda r, w, s: ("grad_norm", dict(params=math.prod(r[0]))),
    "AdamW": lambda r, w, s: ("adamw", dict(params=math.prod(r[0]))),
}
