"""Folders of models as somebody might send them, and what becomes of each; all but "nothing" have to be refused.

`python tests/hub_hostile.py WORK` opens all in one process, which may take 1 GiB beside what it has, and prints a line
of JSON for each.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from hostile import HANG, MOST_BYTES, Runs, entry, header, sparse, too_long
from hub_models import changed, saved
from safetensors.torch import load_file, save_file

CONFIG, PROCESSOR, WEIGHTS, INDEX = (
    "config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json"
)  # fmt: skip
CODE = "open('ran', 'w').close()\n"
Spoil = Callable[[], object]


def config(**values: Any) -> Spoil:
    return lambda: changed(Path("model"), CONFIG, **values)


def processor(**values: Any) -> Spoil:
    return lambda: changed(Path("model"), PROCESSOR, **values)


def text(name: str, content: str | bytes) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path("model", name).write_bytes(data)


def instead(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil() -> None:
        file = Path("model", name)
        file.unlink(missing_ok=True)
        make(file)

    return spoil


def with_code(auto: str) -> Spoil:
    def spoil() -> None:
        for name in ("configuration_x", "modeling_x", "processing_x"):
            Path("model", f"{name}.py").write_text(CODE)
        name, entry = (PROCESSOR, "processing_x.P") if auto == "AutoImageProcessor" else (CONFIG, "modeling_x.M")
        changed(Path("model"), name, auto_map={auto: entry})

    return spoil


def pickled(name: str) -> Spoil:
    def spoil() -> None:
        Path("model", WEIGHTS).unlink()
        Path("model", name).write_bytes(pickle.dumps({"classifier.weight": Runs()}))

    return spoil


def indexed(**places: Any) -> Spoil:
    def spoil() -> None:
        shutil.move(Path("model", WEIGHTS), "outside.safetensors")
        Path("model", INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return spoil


def outside(name: str) -> Spoil:
    return indexed(**{"classifier.weight": name})


def wide(**values: Any) -> Spoil:
    """A classifier that its configuration makes larger, and weights without the tensors that no longer fit."""

    def spoil() -> None:
        config(**values)()
        state = load_file(Path("model", WEIGHTS))
        save_file({"vit.layernorm.bias": state["vit.layernorm.bias"]}, Path("model", WEIGHTS))

    return spoil


CASES: dict[str, Spoil] = {
    "nothing": lambda: None,
    "code in the configuration": with_code("AutoModelForImageClassification"),
    "code for the configuration": with_code("AutoConfig"),
    "code in the processor": with_code("AutoImageProcessor"),
    "code in a part of the configuration": config(vision_config={"auto_map": {"AutoConfig": "modeling_x.M"}}),
    "an attention from the Hub": wide(attn_implementation="org/kernel", _attn_implementation="org/kernel"),
    "a quantizer": config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "weights elsewhere": config(transformers_weights="../outside.safetensors"),
    "a pickle": pickled("pytorch_model.bin"),
    "a pickle of TensorFlow's name": pickled("tf_model.h5"),
    "a pickle called safetensors": instead(WEIGHTS, lambda file: file.write_bytes(pickle.dumps(Runs()))),
    "an archive of torch called safetensors": instead(WEIGHTS, lambda file: torch.save({"a": Runs()}, file)),
    "an index with a path": outside("../outside.safetensors"),
    "an index with an absolute path": outside("/etc/passwd"),
    "an index with a pickle": outside("pytorch_model.bin"),
    "an index with a missing file": outside("model-00001-of-00002.safetensors"),
    "an index with numbers": indexed(a=3, b=None),
    "an index without names": lambda: (indexed()(), text(INDEX, "[]")()),
    "an adapter of another model": text("adapter_config.json", '{"base_model_name_or_path": "org/name"}'),
    "a thousand levels": text(CONFIG, '{"a":' * 1000 + "1" + "}" * 1000),
    "a million levels": text(PROCESSOR, "[" * 1_000_000),
    "a million lists": text(CONFIG, '{"a": [' + "[]," * 1_100_000 + "[]]}"),
    "a list for a configuration": text(CONFIG, "[1, 2]"),
    "no text": text(CONFIG, b'{"model_type": "\xff"}'),
    "a number of 5,000 digits": text(CONFIG, '{"model_type": "vit", "hidden_size": ' + "9" * 5000 + "}"),
    "a configuration of zeros": instead(CONFIG, sparse(4 << 30)),
    "a pipe for a configuration": instead(CONFIG, os.mkfifo),
    "a device for a processor": instead(PROCESSOR, lambda file: file.symlink_to("/dev/zero")),
    "a pipe for weights": instead(WEIGHTS, os.mkfifo),
    "a link to a device for weights": instead(WEIGHTS, lambda file: file.symlink_to("/dev/zero")),
    "a link to a text for weights": instead(WEIGHTS, lambda file: file.symlink_to("/etc/passwd")),
    "a link to itself for weights": instead(WEIGHTS, lambda file: file.symlink_to(file.name)),
    "zeros for weights": instead(WEIGHTS, sparse(4 << 30)),
    "no bytes for weights": instead(WEIGHTS, lambda file: file.write_bytes(b"")),
    "a header that is longer than the file": instead(
        WEIGHTS, lambda file: file.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    ),
    "a header of noise": instead(WEIGHTS, header(b"\xff" * 64)),
    "a header of a huge shape": instead(WEIGHTS, header(entry(shape=[1 << 40, 1 << 20]))),
    "a header with offsets that overlap": instead(WEIGHTS, header(entry() | {"b": entry()["a"]})),
    "weights that are cut off": lambda: os.truncate(Path("model", WEIGHTS), 9000),
    "a hidden size of a billion": wide(hidden_size=10**9),
    "a hidden size that is just allowed": wide(hidden_size=1 << 20, num_attention_heads=1),
    "a hidden size below 0": wide(hidden_size=-16),
    "a hidden size of text": wide(hidden_size="x" * 100),
    "a hidden size of lists": wide(hidden_size=[[16]]),
    "a million layers": wide(num_hidden_layers=1 << 20),
    "a million classes": wide(id2label=None, label2id=None, num_labels=1 << 20),
    "classes of a number": config(id2label=3),
    "classes of no numbers": config(id2label={"a": "cat", "b": [1]}),
    "a number of classes in words": config(id2label=None, label2id=None, num_labels="three"),
    "an image of a million pixels a side": wide(image_size=1 << 20),
    "a list of types": config(model_type=["vit"]),
    "half a channel": config(num_channels=1.5),
    "channels of a list": config(num_channels=[3]),
    "patches of nothing": wide(patch_size=0),
    "stages without end": lambda: changed(
        saved(Path("model"), "convnext"), CONFIG, depths=[1 << 19, 1 << 19], hidden_sizes=[8, 16]
    ),
    "many stages": lambda: changed(
        saved(Path("model"), "convnext"), CONFIG, depths=[1] * 9000, hidden_sizes=[8] * 9000, num_stages=9000
    ),
    "a method's name": config(to_dict="x", get_text_config=3, from_dict=1),
    "the class itself": config(__class__="x", __dict__={"a": 1}),
    "numbers that are none": text(CONFIG, '{"model_type": "vit", "hidden_size": NaN, "image_size": Infinity}'),
    "a processor for a billion pixels": processor(size={"height": 10**9, "width": 10**9}),
    "a processor for a strip": processor(size={"shortest_edge": 2048, "longest_edge": 10**6}),
    "a processor that divides by zero": processor(image_std=[0, 0, 0]),
    "a processor of that name nowhere": processor(image_processor_type="os.system"),
    "a processor that is a model": processor(image_processor_type="AutoModelForImageClassification"),
    "a processor that is a tokenizer": processor(image_processor_type="BertTokenizer"),
    "a processor of texts": processor(size="16", image_mean="a", resample="bilinear"),
    "a processor with a method's name": processor(preprocess="x", to_dict=[1]),
    "a processor with a crop of lists": processor(do_center_crop=True, crop_size=[[1, 2], [3]]),
}


def opened(sound: Path, here: Path, name: str) -> dict[str, Any]:
    """What becomes of a case in the folder `here`, which is a copy of the sound one."""
    from epsball.models.door import Asked
    from epsball.models.hugging_face import open_hugging_face

    shutil.copytree(sound, here)
    with chdir(here):
        CASES[name]()
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            kind, said = "opened", str(open_hugging_face(Asked(spec="hf:./model")).notes)
        except BaseException as error:  # nothing but BadInput should come through
            kind, said = type(error).__name__, str(error)
        seconds = time.process_time() - start
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        ran = Path("ran").exists()
    shutil.rmtree(here)
    return {"name": name, "kind": kind, "said": said, "seconds": seconds, "grown": grown, "ran": ran}


def main(work: Path) -> None:
    signal.signal(signal.SIGALRM, too_long)
    saved(work / "sound" / "model")
    print(json.dumps(opened(work / "sound", work / "first", "nothing")), flush=True)  # imports what it needs
    room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
    for number, name in enumerate(CASES):
        signal.alarm(HANG)
        found = opened(work / "sound", work / f"case{number}", name)
        signal.alarm(0)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
