"""The outputs of an ONNX model without gradients: by onnxruntime, or by the standard's reference implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.models.black_box import BlackBox
from epsball.models.onnx_graph import Declared, first_line

if TYPE_CHECKING:
    from onnx import ModelProto

Arrays = np.ndarray[Any, Any]


class Runtime:
    """A model with one output, arrays (n, *shape) -> (n, classes) or (n,).

    `rows` is the number of rows that the file takes: None for any, 0 where it takes one example without such a
    dimension. `by` is the library that runs it. The session is made when it is first needed, also after a copy into
    another process.
    """

    def __init__(self, model: ModelProto, declared: Declared, rows: int | None) -> None:
        self.model, self.input, self.dtype, self.rows = model.SerializeToString(), declared.name, declared.dtype, rows
        self.by = ""
        self._run: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_run": None}

    def start(self, *, reference: bool = False) -> None:
        """Load the model into onnxruntime, or into onnx's own evaluator. Raises what these raise, or `ImportError`."""
        if reference:
            from onnx import ModelProto
            from onnx.reference import ReferenceEvaluator

            self.by = "onnx's reference evaluator"
            self._run = ReferenceEvaluator(ModelProto.FromString(self.model)).run
            return
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        # Folding could take memory for what an operator of the file claims.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.by = f"onnxruntime {onnxruntime.__version__}"
        self._run = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"]).run

    def __call__(self, x: Arrays) -> Arrays:
        if self._run is None:
            self.start()
        rows = torch.from_numpy(np.ascontiguousarray(x)).to(self.dtype)
        if self.rows is None:
            out = self._one(rows)
        elif self.rows < 2:
            out = np.stack([self._one(row[None] if self.rows else row) for row in rows]).reshape(len(x), -1)
        else:
            padded = torch.cat([rows, rows[-1:].expand(-len(x) % self.rows, *x.shape[1:])])
            out = np.concatenate([self._one(part) for part in padded.split(self.rows)])[: len(x)]
        return out if out.ndim < 3 else out.reshape(len(out), -1)

    def _one(self, x: Tensor) -> Arrays:
        (out,) = self._run(None, {self.input: _array(x)})
        out = np.asarray(out)
        return out if out.dtype in (np.float32, np.float64) else out.astype(np.float32)


def _array(x: Tensor) -> Arrays:
    if x.dtype != torch.bfloat16:
        return x.numpy()
    import ml_dtypes  # a part of onnx's own dependencies

    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def black_box(
    model: ModelProto, declared: Declared, shape: tuple[int, ...], rows: int | None
) -> tuple[BlackBox, tuple[int, ...]]:
    """A model as onnxruntime runs it, and the shape of its examples. Raises `ImportError` where that is missing.

    Outputs that are probabilities on random inputs are answered as such.
    """
    reason = ""
    generator = torch.Generator().manual_seed(0)
    ways = [(None, shape), (1, shape)] if rows is None else [(rows, shape), (0, (rows, *shape) if rows > 1 else shape)]
    for taken, example in ways:
        runtime = Runtime(model, declared, taken)
        n = 2 * (taken or 1) + 1
        try:
            out = runtime(torch.rand(n, *example, generator=generator).numpy())
        except ImportError:
            raise
        except Exception as error:  # onnxruntime raises errors of its own
            reason = first_line(error)
            continue
        if len(out) == n:
            return BlackBox(function=runtime, scores="probabilities" if _probabilities(out) else "logits"), example
        reason = f"it answers with {out.shape} for {n} examples"
    raise BadInput(f"onnxruntime must run it, but {reason}")


def _probabilities(out: Arrays) -> bool:
    if out.ndim == 1 or out.shape[1] == 1 or not ((out >= 0) & (out <= 1)).all():
        return False
    return bool(np.allclose(out.sum(1), 1, atol=1e-3))
