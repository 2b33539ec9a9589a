"""Methods that read the examples of a task one after another: external memories, SNAIL, and a transformer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learner_loops.plain import Plain, linear
from benchmarks.learner_loops.recurrent import lstm, lstm_gates
from metaforge.authoring import Key, Params, Task, fold_in, permutation


def stream_order(key: Key, task: Task, plain: Plain) -> Tensor:
    """Return the random order of all examples of a task, support and query set."""
    return permutation(fold_in(key, "order"), len(task.support.y) + len(task.query.y))


def stream(values: Params, task: Task, plain: Plain, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, one-hot labels and labels of all examples in the drawn order."""
    features, y = torch.cat(plain.of_task(values, task))[order], torch.cat([task.support.y, task.query.y])[order]
    return features, F.one_hot(y).to(features.dtype), y


def mann(values: Params, task: Task, plain: Plain, order: Tensor) -> Tensor:
    """MANN: an LSTM with a memory, in which it writes to the rows that were used least."""
    features, labels, y = stream(values, task, plain, order)
    c, zeros = plain.options, features.new_zeros
    # Each example comes with the label of the one before.
    inputs = torch.cat([features, F.pad(labels, (0, 0, 1, 0))[:-1]], 1) @ values["mann.input"]
    h, cell, rows, usage = zeros(c.hidden), zeros(c.hidden), zeros(c.rows, c.width), zeros(c.rows)
    reads, read, logits = zeros(c.heads, c.rows), zeros(c.heads * c.width), []
    for x in inputs + values["mann.input.bias"]:
        admit, keep, emit, content = (x + torch.cat([h, read]) @ values["mann.recurrent"]).chunk(4)
        cell = (keep + 1).sigmoid() * cell + admit.sigmoid() * content.tanh()
        h = emit.sigmoid() * cell.tanh()
        emitted = h @ values["mann.interface"] + values["mann.interface.bias"]
        keys, adds = emitted[: 2 * c.heads * c.width].tanh().view(2, c.heads, c.width)
        gate = emitted[2 * c.heads * c.width :].sigmoid().unsqueeze(1)
        least = F.one_hot(usage.detach().argsort(stable=True)[: c.heads], c.rows).to(h.dtype)
        writes = gate * reads + (1 - gate) * least
        rows = rows * (1 - least.sum(0)).unsqueeze(1) + writes.T @ adds
        reads = (c.sharpness * similarity(keys, rows, 1e-8)).softmax(-1)
        read = (reads @ rows).flatten()
        usage = c.decay * usage + reads.sum(0) + writes.sum(0)
        logits.append(torch.cat([h, read]))
    return F.cross_entropy(torch.stack(logits) @ values["mann.output"] + values["mann.output.bias"], y)


def similarity(keys: Tensor, rows: Tensor, smallest: float) -> Tensor:
    """Return the cosine of each key and each row of a memory `[heads, rows]`."""
    lengths = (keys.square().sum(-1, keepdim=True) + smallest).sqrt() * (rows.square().sum(-1) + smallest).sqrt()
    return keys @ rows.T / lengths


def ntm(values: Params, task: Task, plain: Plain, order: Tensor) -> Tensor:
    """Neural Turing machine: an LSTM with a memory, which it addresses by content and by location."""
    features, labels, y = stream(values, task, plain, order)
    c, zeros = plain.options, features.new_zeros
    known = torch.cat([features, F.pad(labels, (0, 0, 1, 0))[:-1]], 1)
    inputs = F.linear(known, values["ntm.lstm.weight_ih"], values["ntm.lstm.bias"])
    h, cell, read = zeros(c.hidden), zeros(c.hidden), zeros(c.heads * c.width)
    rows = features.new_full((c.rows, c.width), 1e-6)
    reads = writes = F.one_hot(torch.zeros(c.heads, dtype=torch.int64), c.rows).to(h.dtype)
    size, logits = c.width + 2 * c.shifts + 4, []
    for x in inputs:
        h, cell = lstm(lstm_gates(x, values["ntm.lstm.weight_hh"], h, read), cell, forget=1.0)
        emitted = linear(values, "ntm.interface.0", h)
        of_reads, of_writes = emitted[: 2 * c.heads * size].view(2, c.heads, size)
        erase, add = emitted[2 * c.heads * size :].view(2, c.heads, c.width)
        writes = weights_of_heads(of_writes, rows, writes, plain)
        rows = rows * (1 - writes.unsqueeze(2) * erase.sigmoid().unsqueeze(1)).prod(0) + writes.T @ add
        reads = weights_of_heads(of_reads, rows, reads, plain)
        read = (reads @ rows).flatten()
        logits.append(torch.cat([h, read]))
    return F.cross_entropy(linear(values, "ntm.output.0", torch.stack(logits)), y)


def weights_of_heads(emitted: Tensor, rows: Tensor, before: Tensor, plain: Plain) -> Tensor:
    """Return the weights of the rows `[heads, rows]`, from those before: content, gate, shift and sharpening."""
    width, reach = plain.options.width, plain.options.shifts
    strength, gate, sharpness = emitted[:, width : width + 3].unsqueeze(-1).unbind(1)
    content = F.softplus(plain.options.strength + strength) * similarity(emitted[:, :width], rows, 1e-16)
    mixed = torch.lerp(before, content.softmax(-1), gate.sigmoid())
    shift = emitted[:, width + 3 :].softmax(-1)
    moved = torch.stack([mixed.roll(n, -1) for n in range(-reach, reach + 1)], -1) @ shift.unsqueeze(-1)
    return ((1 + F.softplus(sharpness)) * (moved.squeeze(-1) + 1e-16).log()).softmax(-1)


def snail(values: Params, task: Task, plain: Plain, order: Tensor) -> Tensor:
    """SNAIL: causal convolutions and attention over the support examples in a drawn order, and each query after them.

    All queries of a task follow the same examples, so they are one sequence with a mask.
    """
    support, query = plain.of_task(values, task)
    n, ways, c = len(support), int(task.support.y.max()) + 1, plain.options
    examples = torch.cat([support, F.one_hot(task.support.y).to(support.dtype)], 1)[order]
    x = torch.cat([examples, F.pad(query, (0, ways))])
    seen = earlier(n, len(query))
    for number, keys in enumerate(c.keys):
        if number > 0:
            for block in range((c.length - 1).bit_length()):
                x = dense_block(values, f"snail.convolution{number}.{block}", x, n, c.first_dilation * 2**block)
        query, key, value = linear(values, f"snail.attention{number}", x).tensor_split([keys, 2 * keys], -1)
        scores = (query @ key.T / keys**0.5).masked_fill(~seen, -torch.inf)
        x = torch.cat([x, scores.softmax(-1) @ value], -1)
    return F.cross_entropy(linear(values, "snail.output", x[n:]), task.query.y)


def dense_block(values: Params, name: str, x: Tensor, n: int, dilation: int) -> Tensor:
    """Return a sequence of `n` examples and of queries, each next after them, with a gated convolution appended."""
    padded = F.pad(x[:n], (0, 0, dilation, 0))
    before = torch.cat([padded[:n], padded[n].expand(len(x) - n, -1)])
    early, late = values[f"{name}.weight"].unbind(-1)
    convolved = F.linear(before, early) + F.linear(x, late, values[f"{name}.bias"])
    content, gate = convolved.chunk(2, -1)
    return torch.cat([x, content.tanh() * gate.sigmoid()], -1)


def earlier(examples: int, queries: int) -> Tensor:
    """Return what each of a sequence of examples, and of the queries after it, sees: itself, and examples before it."""
    seen = torch.eye(examples + queries, dtype=torch.bool)
    seen[:, :examples] |= torch.ones(examples + queries, examples, dtype=torch.bool).tril()
    return seen


def in_context(values: Params, task: Task, plain: Plain, order: Tensor) -> Tensor:
    """A transformer that reads a stream, where each example is also a query before its label is known."""
    features, labels, y = stream(values, task, plain, order)
    n = len(y)
    seen = torch.cat([earlier(n, 0), torch.ones(n, n, dtype=torch.bool).tril(-1)])
    seen = torch.cat([seen, torch.eye(2 * n, dtype=torch.bool)[:, n:]], 1)
    return F.cross_entropy(transformer(values, features, labels, features, seen, plain), y)


def in_context_curves(values: Params, task: Task, plain: Plain) -> Tensor:
    """A transformer that reads all support examples, and gives the distribution of the value of each query."""
    support, query = plain.of_task(values, task)
    seen = torch.eye(len(support) + len(query), dtype=torch.bool)
    seen[:, : len(support)] = True
    outputs = transformer(values, support, task.support.y, query, seen, plain)
    mean, s = outputs.chunk(2, -1)
    deviation = plain.options.floor + (1 - plain.options.floor) * F.softplus(s)
    return F.gaussian_nll_loss(mean, task.query.y, deviation.square(), full=True)


def transformer(
    values: Params, examples: Tensor, targets: Tensor, queries: Tensor, seen: Tensor, plain: Plain
) -> Tensor:
    """Return the outputs for the queries, from features of examples and queries and the targets of the examples."""
    c, tokens = plain.options, linear(values, "token.features", torch.cat([examples, queries]))
    known = linear(values, "token.target", targets)
    h = tokens + torch.cat([known, values["token.query"].expand(len(queries), -1)])
    for number in range(c.layers):
        layer = f"layer{number}"
        attend = linear(values, f"{layer}.attend", layer_norm(values, f"{layer}.norm1", h))
        query, key, value = (part.view(len(h), c.heads, -1).transpose(0, 1) for part in attend.chunk(3, -1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        h = h + linear(values, f"{layer}.merge", attended.transpose(0, 1).flatten(1))
        inner = linear(values, f"{layer}.expand", layer_norm(values, f"{layer}.norm2", h))
        h = h + linear(values, f"{layer}.reduce", F.gelu(inner))
    return linear(values, "head", layer_norm(values, "head.norm", h[len(examples) :]))


def layer_norm(values: Params, name: str, x: Tensor) -> Tensor:
    """Return the output of a layer norm."""
    return F.layer_norm(x, x.shape[-1:], values[f"{name}.weight"], values[f"{name}.bias"])
