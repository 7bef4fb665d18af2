"""Compiled functions in files: compiled once, for arguments of given shapes, and called in other processes without tracing.

    artifact.save("step.graph", training.gradients(model), params, x, key)
    artifact.save("sampler.graph", functools.partial(model.sample, clip=True), params, key, 16, steps=torch.tensor(100))

and in another process:

    grad_fn, sample = artifact.load("step.graph"), artifact.load("sampler.graph")
    state, metrics = training.train_step(settings, grad_fn, state, x, key)
    images = sample(state.ema_params, key, 16, steps=torch.tensor(250))

Tensors among the arguments, parameters too, are arguments of the loaded function, and are not in the file. A file serves the
versions and the kind of processor that it was made with.
"""

import inspect
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor

from purevdm import _checks, _files, _trees
from purevdm._compile import OLD, exact, transformed

__all__ = ["ArtifactError", "load", "save"]

_FORMAT, _HEAD, _GRAPH = 1, "head.json", "graph.pickle"
_LOAD = "import sys; from purevdm import artifact; artifact.load(sys.argv[1])"
Leaves = dict[tuple[Any, ...], Any]


class ArtifactError(ValueError):
    """A file that is damaged, or made for another version, processor or device; the message says which."""


def save(path: str | os.PathLike[str], f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Compiles ``f(*args, **kwargs)`` by inductor, as one graph for these shapes, and saves it, whole or not at all.

    It takes as long as compiling without a cache, and some seconds more, in which a second process loads the file to test
    it. Kernels use as many threads as PyTorch does now. Autocast acts as it does now.

    Args:
        path: the file.
        f: a function of trees of tensors, numbers and text (dicts, tuples, lists), which returns such a tree of tensors, as
            ``model.sample``, ``model.nll_bound`` and ``training.gradients(model)`` do, the last without ``compile``,
            ``remat`` and ``frozen``. Bind other options with ``functools.partial``. Tensors that f closes over are saved as
            they are: parameters should be arguments.
        args, kwargs: examples of its arguments. Tensors stand for any of their shape, dtype and device. Numbers, text, True
            and False are compiled in: give a number of steps in a tensor.

    Raises:
        RuntimeError: a PyTorch older than 2.13; or what the compiler raises for f.
        TypeError: an argument or a result of another type; the leaf is named.
        ArtifactError: the second process could not load the file.
    """
    path, f = _checks.path("path", path), _checks.function("f", f)
    if OLD:
        raise RuntimeError(f"artifact: expected PyTorch 2.13 or newer, got {torch.__version__}")
    from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir

    parameters = inspect.signature(f).parameters.items()
    names = [name for name, p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    examples: Any = optree.tree_map(_example, (args, kwargs))  # type: ignore[arg-type]
    leaves = _leaves(names, *examples)
    for place, leaf in leaves.items():
        wanted = "a tensor, a number or text (bind other options with functools.partial)"
        _checks.instance(_trees.dotted(*place), leaf, (Tensor, bool, int, float, str), wanted)
    gpu = any(isinstance(leaf, Tensor) and leaf.device.type == "cuda" for leaf in leaves.values())
    head = {
        "format": _FORMAT,
        "for": _here(gpu),
        "instructions": _instructions(),
        "names": names,
        "arguments": [(place, _described(place, leaf)) for place, leaf in leaves.items()],
    }
    # An empty cache: once a second process has loaded the graph, it holds all kernels, those too that probe the processor.
    with tempfile.TemporaryDirectory() as folder, temporary_cache_dir(folder), _files.replaced(path) as draft:
        graph = pickle.dumps(_compiled(f, examples, leaves))
        _write(draft, head, graph, {})
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", _LOAD, draft], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ArtifactError(f"{path}: a second process fails to load it: {done.stderr.strip()[-500:]}")
        kernels = {file.relative_to(folder).as_posix(): file.read_bytes() for file in Path(folder).rglob("*.so")}
        _write(draft, head, graph, kernels)


def load(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """Loads what :func:`save` saved: a function of the same arguments, which returns what f returned.

    It cannot be differentiated; gradients come from a file of ``training.gradients(model)``, and are contiguous. Arguments
    that are not are copied. Autocast does not change it. Its kernels go into inductor's cache directory.

    The file holds a pickle and machine code, which may do anything once they are loaded: load only files that you made.

    Raises:
        FileNotFoundError: no such file.
        ArtifactError: it is damaged, or made for other versions, another processor or device. These are compared before
            anything is unpickled.
        TypeError, ValueError: the function's arguments differ from the examples in structure, shape, dtype or device, or in
            a number; the leaf is named.
        RuntimeError: the function is called within a ``torch.func`` transform.
    """
    path = _checks.path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
    try:
        with zipfile.ZipFile(path) as archive:
            head = json.loads(archive.read(_HEAD))
            _refuse_others(path, head)
            device = torch.device("cuda" if "GPU" in head["for"] else "cpu")
            names, wanted = head["names"], {tuple(place): text for place, text in head["arguments"]}
            graph = archive.read(_GRAPH)
            kernels = {name: archive.read(name) for name in set(archive.namelist()) - {_HEAD, _GRAPH}}
    except (ArtifactError, OSError):
        raise
    except Exception as error:  # zipfile and json raise several kinds
        raise ArtifactError(f"{path}: damaged, or no file of purevdm.artifact ({error or type(error).__name__})") from None
    _install(kernels)
    from torch._inductor.standalone_compile import AOTCompiledArtifact

    saved = pickle.loads(graph)
    run = AOTCompiledArtifact.deserialize(saved["code"])

    def loaded(*args: Any, **kwargs: Any) -> Any:
        if transformed():
            raise RuntimeError(
                f"{path}: expected a call outside of torch.func's transforms, as a loaded graph has no derivatives"
            )
        leaves = _leaves(names, args, kwargs)
        for place in wanted | leaves:
            given, want = _described(place, leaves.get(place)), wanted.get(place, _described(place, None))
            if given != want:
                raise ValueError(f"{_trees.dotted(*place)}: expected {want}, as in the example, got {given}")
        with torch.no_grad(), exact(device):
            inputs = [x if isinstance(x, Tensor) else leaves[x].detach().contiguous() for x in saved["inputs"]]
            made = run(*inputs)
        return optree.tree_unflatten(
            saved["tree"], [leaves[x] if isinstance(x, tuple) else made[x] for x in saved["outputs"]]
        )

    return loaded


def _example(leaf: Any) -> Any:
    """Makes an object of its own for each leaf: one tensor given twice would be one argument of the graph."""
    return torch.empty_like(leaf, memory_format=torch.contiguous_format) if isinstance(leaf, Tensor) else leaf


def _leaves(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Leaves:
    """Lists the leaves of arguments by name and path, however they were given."""
    if len(args) > len(names):
        raise TypeError(f"expected at most {len(names)} arguments by position ({', '.join(names)}), got {len(args)}")
    given = dict(zip(names, args, strict=False))
    for name in given.keys() & kwargs.keys():
        raise TypeError(f"{name}: expected one value, got one by position and one by name")
    return _checks.leaves(given | kwargs)


def _described(place: tuple[Any, ...], leaf: Any) -> str:
    """Describes in words all of a leaf that is compiled in."""
    if not isinstance(leaf, Tensor):
        return "nothing" if leaf is None else _checks.describe(leaf)
    return f"{_checks.describe(_checks.tensor(_trees.dotted(*place), leaf))} on {leaf.device}"


def _compiled(f: Callable[..., Any], examples: Any, leaves: Leaves) -> dict[str, Any]:
    """Makes the graph's code, and says what it is given (places among the arguments, or tensors that f closes over), and how
    the result is made of what it returns and of arguments."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.standalone_compile import AOTCompiledArtifact

    code = b""
    given: tuple[Any, ...] = ()
    made: list[Tensor] = []

    def compile(graph: Any, inputs: Any) -> Callable[..., Any]:
        nonlocal code, made
        code = AOTCompiledArtifact(compile_fx(graph, inputs)).serialize()  # type: ignore[arg-type]
        made = [torch.empty(()) for _ in graph.graph.output_node().args[0]]
        return run

    def run(*inputs: Any) -> list[Tensor]:
        """Computes nothing: which tensors go in and where others come out is all that is asked."""
        nonlocal given
        given = inputs
        return made

    def call(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)

    call.__code__ = call.__code__.replace()  # the compiler counts graphs by code, and refuses the ninth
    settings = ("bundled_autograd_cache", "bypass_autograd_cache_key", "force_autograd_cache", "strict_autograd_cache")
    with torch.no_grad(), torch._functorch.config.patch(dict.fromkeys(settings, True)):
        result = torch.compile(call, fullgraph=True, dynamic=False, backend=compile)(*examples[0], **examples[1])
    places: dict[int, Any] = {id(leaf): place for place, leaf in leaves.items() if isinstance(leaf, Tensor)}
    known = places | {id(x): i for i, x in enumerate(made)}
    for place, leaf in _checks.leaves((result,)).items():
        if id(leaf) not in known:
            raise TypeError(f"{_trees.dotted('result', *place[1:])}: expected a tensor, got {_checks.describe(leaf)}")
    outputs: Any
    tree: Any
    outputs, tree = optree.tree_flatten(result)
    return {
        "code": code,
        "inputs": [places.get(id(x), x) for x in given],
        "outputs": [known[id(x)] for x in outputs],
        "tree": tree,
    }


def _here(gpu: bool) -> dict[str, str]:
    """Lists what must be the same where a file is loaded."""
    from purevdm import __version__

    here = {
        "purevdm": __version__,
        "PyTorch": torch.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "system": platform.system(),
        "machine": platform.machine(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
    }
    if gpu:
        here["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return here


def _instructions() -> list[str]:
    """Lists what the processor can do: inductor makes code for this very one."""
    return sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True)


def _refuse_others(path: Path, head: dict[str, Any]) -> None:
    if head["format"] != _FORMAT:
        raise ArtifactError(f"{path}: expected format {_FORMAT}, got {head['format']}")
    here = _here("GPU" in head["for"])
    other = {name: made for name, made in head["for"].items() if made != here[name]}
    if other:
        made, now = (", ".join(f"{name} {values[name]}" for name in other) for values in (other, here))
        raise ArtifactError(f"{path}: made for {made}; here: {now}. Make it again")
    lacking = sorted(set(head["instructions"]) - set(_instructions()))
    if lacking:
        raise ArtifactError(f"{path}: made for a processor with {', '.join(lacking)}, which this one lacks. Make it again")


def _write(path: Path, head: dict[str, Any], graph: bytes, kernels: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_HEAD, json.dumps(head))
        for name, content in {_GRAPH: graph, **kernels}.items():
            archive.writestr(name, content)


def _install(kernels: dict[str, bytes]) -> None:
    """Puts kernels where inductor looks before it compiles them: their names are digests of code and compiler flags."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    for name, content in kernels.items():
        file = Path(cache_dir(), name)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(f".{uuid.uuid4().hex}")
            draft.write_bytes(content)
            draft.replace(file)
