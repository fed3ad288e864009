"""A GPU that is pretended: tensors without numbers on a device "cuda", and every wait for that device counted.

FakeTensorMode runs shapes, types and devices of all operations and raises where tensors of two devices meet. Numbers
that the host asks for are made up by ``Waits``, which counts the question. PyTorch's own engine of backward passes asks
the driver for streams, so ``walk_backward`` stands in for it: the same nodes, one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glip_model import postprocess as postprocessing
from glip_model.cached import forget
from glip_model.config import GLIPConfig, glip_t
from glip_model.glip import GLIP
from glip_model.postprocess import postprocess
from glip_model.structures import GLIPOutput, GroundingBatch, GroundingTarget
from glip_model.transfer import send
from pipeline.training.settings import OptimConfig
from pipeline.training.update import Updater

ANSWER = 5
"""What the device is said to have found, whatever the host asks."""
aten = torch.ops.aten
ASKS = {
    aten.nonzero,
    aten.argwhere,
    aten.masked_select,
    aten.unique_dim,
    aten._unique,
    aten._unique2,
    aten.unique_consecutive,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    torch.ops.torchvision.nms if hasattr(torch.ops.torchvision, "nms") else None,
}
"""Operations whose result, or its size, the host must know to go on."""


def on_gpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the GPU, by the name of the operation; entered inside of a FakeTensorMode.

    As ``torch.cuda.set_sync_debug_mode`` would on a real one: numbers asked for, results of unknown size, copies to the
    host, and copies to the GPU that are not marked as non-blocking.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations += 1
        packet = func.overloadpacket
        if packet is aten._local_scalar_dense:
            self.found["number"] += on_gpu(args[0])
            return {torch.bool: True, torch.int64: ANSWER}.get(args[0].dtype, float(ANSWER))
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(map(on_gpu, leaves)):
            by_mask = packet in (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index) and any(
                index is not None and (index.dtype in (torch.bool, torch.uint8) or not on_gpu(index))
                for index in args[1]
            )
            repeats = packet is aten.repeat_interleave and kwargs.get("output_size") is None
            self.found[str(packet)] += packet in ASKS or by_mask or repeats
        result = func(*args, **kwargs)
        if packet in (aten._to_copy, aten.copy_, aten.copy):
            source, target = (args[0], result) if packet is aten._to_copy else (args[1], args[0])
            non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if on_gpu(source) and not on_gpu(target):
                self.found["copy to the host"] += 1
            elif on_gpu(target) and not on_gpu(source) and not non_blocking:
                # One number, such as that of an assignment, travels with the kernel.
                self.found["blocking copy to the GPU"] += source.dim() > 0
        return result

    @property
    def total(self) -> int:
        return self.found.total()


@torch.no_grad()
def walk_backward(total: Tensor) -> None:
    """Do what ``torch.autograd.backward`` does, in Python: call every node once all of its gradients are there."""
    root = total.grad_fn
    assert root is not None
    needed: Counter[Any] = Counter()
    seen, stack = {root}, [root]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is None:
                continue
            needed[following] += 1
            if following not in seen:
                seen.add(following)
                stack.append(following)
    arrived: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(total)}}
    ready = [root]
    while ready:
        node = ready.pop()
        inputs = arrived.pop(node, {})
        if hasattr(node, "variable"):
            if inputs:
                leaf = node.variable
                leaf.grad = inputs[0].detach() if leaf.grad is None else leaf.grad + inputs[0]
            continue
        call = node if callable(node) else node.apply  # nodes of C++ and of Python
        found = call(*(inputs.get(i) for i in range(len(node._input_metadata)))) if inputs else None
        each = found if isinstance(found, tuple) else (found,) * len(node.next_functions)
        # Nodes of Python answer for numbers among their arguments, too, which torchvision's have behind the tensors.
        for (following, i), gradient in zip(node.next_functions, each, strict=False):
            if following is None:
                continue
            if gradient is not None:
                expected = following._input_metadata[i]
                gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
                others = arrived.setdefault(following, {})
                others[i] = others[i] + gradient if i in others else gradient
            needed[following] -= 1
            if needed[following] == 0:
                ready.append(following)


def waits_of(run: Callable[[], Any]) -> Waits:
    """Count what a second call waits for; the first one makes what is kept from call to call."""
    with Waits():
        run()
    with Waits() as waits:
        run()
    return waits


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Give a mode under which there is a GPU that computes in bfloat16."""
    from transformers import masking_utils

    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor, *args: tensor.clone())
    monkeypatch.setattr(torch.autograd, "backward", walk_backward)
    # By this number checkpointing knows a backward pass; outside of one it would recompute for every single tensor.
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 1)
    # It draws anew until all numbers are within bounds.
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: tensor)
    # transformers leaves out what it asks of the numbers of a mask when it sees that the tensor has none.
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *args: False)
    # What read-off does with numbers that are on the host already needs no pretence: test_postprocess.py.
    monkeypatch.setattr(postprocessing, "_detections", lambda rows, *args: rows)
    # As of a tensor on a real GPU, all numbers come by one copy.
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: _listed(tensor.cpu() if on_gpu(tensor) else tensor))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode
    forget()


def _listed(tensor: Tensor) -> Any:
    return tensor.item() if tensor.dim() == 0 else [_listed(part) for part in tensor]


@pytest.fixture
def optim(optim_config: OptimConfig) -> OptimConfig:
    return replace(optim_config, bf16=True, ema_decay=0.999, schedule="steps")


def make_batch(
    boxes: Sequence[int], height: int, width: int, tokens: int, vocabulary: int, device: str = "cuda"
) -> GroundingBatch:
    """Return a batch with so many boxes in each picture."""
    targets = tuple(
        GroundingTarget(
            torch.rand(count, 4, device=device) * 40 + torch.tensor([0.0, 0.0, 45.0, 45.0], device=device),
            torch.zeros(count, tokens, dtype=torch.bool, device=device),
            torch.ones(tokens, dtype=torch.bool, device=device),
        )
        for count in boxes
    )
    return GroundingBatch(
        pixel_values=torch.randn(len(boxes), 3, height, width, device=device),
        image_sizes=((height, width),) * len(boxes),
        input_ids=torch.randint(vocabulary, (len(boxes), tokens), device=device),
        attention_mask=torch.ones(len(boxes), tokens, dtype=torch.bool, device=device),
        targets=targets,
    )


def make_glip(config: GLIPConfig) -> GLIP:
    with torch.device("cuda"):
        return GLIP(config)


def trainable(config: GLIPConfig) -> GLIPConfig:
    """Return the tiny model with all that a published one does in training."""
    text = replace(config.text, frozen=False, encoding="joint", dropout=0.1)
    fusion = replace(config.fusion, dropout=0.1, text_dropout=0.1)
    swin = replace(config.backbone.swin, depths=(1, 2, 1, 1), drop_path=0.2)
    backbone = replace(config.backbone, swin=swin)
    return replace(config, backbone=backbone, text=text, fusion=fusion, num_levels=3, deformable=True, drop_block=0.3)


def test_gradients_of_a_walk_are_those_of_the_engine(tiny_glip: GLIPConfig, optim: OptimConfig) -> None:
    torch.manual_seed(0)
    model = GLIP(trainable(tiny_glip)).train()
    updater = Updater(model, replace(optim, bf16=True), 100)
    batch = make_batch((3, 0, 2), 96, 128, 12, 1000, "cpu")

    def gradients(backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.autograd, "backward", backward)
            updater.backward(batch)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected, found = gradients(torch.autograd.backward), gradients(walk_backward)
    assert expected.keys() == found.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("checkpointed", "changes"),
    [(False, {}), (True, {"accumulate": 2}), (False, {"bf16": False, "max_grad_norm": 0.0})],
    ids=["bf16", "checkpointed", "float32"],
)
def test_a_training_step_waits_for_the_gpu_once(
    tiny_glip: GLIPConfig, optim: OptimConfig, checkpointed: bool, changes: dict[str, Any]
) -> None:
    model = make_glip(replace(trainable(tiny_glip), activation_checkpointing=checkpointed)).train()
    updater = Updater(model, replace(optim, **changes), 100)
    batch = make_batch((3, 0, 7, 1), 96, 128, 12, 1000)
    waits = waits_of(lambda: updater.step(batch, ["random"]))
    assert updater.skipped == 0
    assert waits.operations > 1000
    assert waits.total == 1, waits.found
    state = [*model.parameters(), *(p.grad for p in model.parameters()), *tree_leaves(updater.optimizer.state_dict())]
    assert all(map(on_gpu, [value for value in state if isinstance(value, Tensor)]))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("boxes", [(3, 0, 7, 1), (0, 0)])
def test_losses_stay_on_the_gpu_and_never_wait(
    tiny_glip: GLIPConfig, optim: OptimConfig, boxes: tuple[int, ...]
) -> None:
    updater = Updater(make_glip(trainable(tiny_glip)).train(), optim, 100)
    batch = make_batch(boxes, 96, 128, 12, 1000)
    losses: dict[str, Tensor] = {}
    waits = waits_of(lambda: losses.update(updater.backward(batch)))
    assert len(losses) == 4
    assert all(on_gpu(loss) and loss.dtype == torch.float32 for loss in losses.values())
    assert waits.total == 0, waits.found


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_a_step_of_glip_t_at_its_published_size_waits_once(optim: OptimConfig) -> None:
    updater = Updater(make_glip(glip_t()).train(), optim, 100)
    batch = make_batch((20, 0), 800, 1344, 256, 30522)
    waits = waits_of(lambda: updater.step(batch, ["random"]))
    assert waits.total == 1, waits.found


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("size", [1, 6])
def test_a_prediction_waits_twice_whatever_the_number_of_pictures(tiny_glip: GLIPConfig, size: int) -> None:
    config = trainable(tiny_glip)
    model = make_glip(config).eval()
    maps = [torch.ones(1 + i, 9, dtype=torch.bool) for i in range(size)]
    sizes = [(96, 128)] * size
    pixel_values = torch.randn(size, 3, 96, 128)
    input_ids, mask = torch.zeros(size, 12, dtype=torch.int64), torch.ones(size, 12, dtype=torch.bool)

    def predict() -> None:
        device = torch.device("cuda")
        # Under inference_mode operations come here whole, and not as the copies that they consist of.
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            features = model.features(send(pixel_values, device))
            output = model.ground(features, send(input_ids, device), send(mask, device))
            assert all(map(on_gpu, (output.token_logits, output.box_deltas, output.centerness)))
            rows = postprocess(output, sizes, maps, sizes, config)
            assert [tuple(each.shape) for each in cast(list[Tensor], rows)] == [(ANSWER, 7)] * size

    waits = waits_of(predict)
    assert waits.total == 2, waits.found


@pytest.mark.usefixtures("gpu")
def test_postprocess_suppresses_on_the_gpu(tiny_glip: GLIPConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    suppress_together = postprocessing.suppress_together

    def spy(boxes: Tensor, phrases: Tensor, threshold: float) -> Tensor:
        seen.extend((boxes, phrases))
        return suppress_together(boxes, phrases, threshold)

    monkeypatch.setattr(postprocessing, "suppress_together", spy)
    levels = tuple((16 // 2**i, 16 // 2**i) for i in range(tiny_glip.num_levels))
    cells = sum(height * width for height, width in levels)
    output = GLIPOutput(
        torch.randn(3, cells, 12, device="cuda"),
        torch.randn(3, cells, 4, device="cuda"),
        torch.randn(3, cells, device="cuda"),
        levels,
    )
    with Waits():
        postprocess(output, [(128, 128)] * 3, [torch.ones(2, 12, dtype=torch.bool)] * 3, [(128, 128)] * 3, tiny_glip)
    assert [tuple(tensor.shape) for tensor in seen] == [(3, ANSWER, 4), (3, ANSWER)]
    assert all(map(on_gpu, seen))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("wait", "count"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: bool((x > 0).any()), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.new_tensor([1.0, 2.0]), 1),
        (lambda x: torch.ones(3).to("cuda"), 1),
        (lambda x: x[torch.tensor([0, 1])], 1),
        (lambda x: send(torch.ones(3), torch.device("cuda")), 0),
        (lambda x: x.topk(2).values * 2 + x.max(), 0),
    ],
)
def test_waits_are_counted(wait: Callable[[Tensor], Any], count: int) -> None:
    x = torch.randn(8, device="cuda")
    with Waits() as waits:
        wait(x)
    assert waits.total == count, waits.found


@pytest.mark.parametrize("wait", [lambda x: (x > 0).nonzero(), lambda x: x[x > 0], lambda x: x.masked_select(x > 0)])
def test_results_of_unknown_size_do_not_run_on_a_pretended_gpu(gpu: FakeTensorMode, wait: Any) -> None:
    x = torch.randn(8, device="cuda")
    with Waits() as waits, pytest.raises(DynamicOutputShapeException):
        wait(x)
    assert waits.total == 1, waits.found
