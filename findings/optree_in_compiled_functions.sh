#!/usr/bin/env bash
# PyTorch 2.13.0, CPU, backend "eager": what optree's functions do inside torch.compile, where Dynamo has versions of its own for them.
# With optree 0.19.1 and 0.20.0 a compiled function that returns optree.tree_leaves(tree), called first with {}, returns no leaves for
# {"b": x} afterwards: nothing guards on a dict that was empty. Called first with {"b": x} it returns both rightly. With both versions
# optree.tree_map visits a dict's entries in the order of insertion when compiled and in sorted order otherwise, while tree_leaves is
# sorted either way: so leaves that a function takes from an iterator, one a visit, go to other entries. With 0.20.0 only, tree_leaves of
# {"a": {}, "b": x} does not compile: Dynamo cannot wrap optree's DictMetaData. Fails if that changes.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 numpy
cat > "$here/compiled.py" <<'PY'
import optree
import torch


def leaves(tree):
    return optree.tree_leaves(tree)


def visits(tree):
    seen = []

    def visit(x):
        seen.append(x)
        return x

    optree.tree_map(visit, tree)
    return seen


def compiled(f, *trees):
    torch._dynamo.reset()
    run = torch.compile(f, fullgraph=True, backend="eager")
    return [run(tree) for tree in trees]


x, two = torch.ones(1), {"b": torch.tensor(1), "a": torch.tensor(0)}
try:
    nested = len(compiled(leaves, {"a": {}, "b": x})[0])
except torch._dynamo.exc.Unsupported as error:
    nested = "DictMetaData" in str(error)
after_empty, before_empty = (len(compiled(leaves, *trees)[at]) for trees, at in ((({}, {"b": x}), 1), (({"b": x}, {}), 0)))
print(after_empty, before_empty, [int(x) for x in compiled(visits, two)[0]], optree.tree_leaves(two)[0].item(), nested)
PY
for version in 0.19.1 0.20.0; do
    "$here/venv/bin/pip" install -q "optree==$version"
    found=$("$here/venv/bin/python" "$here/compiled.py")
    echo "optree $version: leaves of {\"b\": x} after an empty dict, and before one; entries in the order of visits; the first leaf; nested: $found"
    case $version in 0.19.1) nested=1 ;; *) nested=True ;; esac
    test "$found" = "0 1 [1, 0] 0 $nested"
done
