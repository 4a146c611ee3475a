"""The examples in the help of every command, and how each is checked.

`run` runs the example in a folder with small runs and pictures, after the changes that are listed: "old -> new"
replaces text, anything else is added. `parse` stops the command where its work would begin: its flags and its config
are read as always. The reason stands beside it.
"""

import ast
import re

from experiments.bench import commands
from tests.tiny import ROOT

# Workers of benchmarks, which run in environments without this project's commands
WORKERS = [f"experiments.bench.{name}" for name in ("ours", "peer", "peer_speedrun", "tf_data")]
MODULES = [*commands.names(), *WORKERS]

TABLE = r"""
python -m experiments.bench
    parse   minutes; test_bench.py runs the command
python -m experiments.bench --quick --profile
    parse   minutes; test_bench.py
python -m experiments.bench --cases=resnet20,loop --rounds=20
    parse   minutes; test_bench.py
python -m experiments.bench --cases=mobilenet_v2 --sizes=224 --peer_python=../venv-torch/bin/python
    parse   minutes, with PyTorch
python -m experiments.bench --cases=resnet50 --sweep=batch
    parse   minutes; test_bench.py
python -m experiments.bench --topology=v5e:1x1 --cases=resnet50 --blocks=1
    parse   needs libtpu; train/test_forecast.py
python -m experiments.bench.sources --folder=/tmp/sources
    parse   makes 5 GB; test_bench.py
python -m experiments.bench.sources --folder=/tmp/sources --entries=10000 --forms=tar,csv
    parse   test_bench.py
python -m experiments.bench.costs --out=experiments/results/costs
    parse   two minutes; test_costs.py
python -m experiments.bench.skipped
    parse   ten minutes
python -m experiments.bench.skipped --workdirs=runs/aig,runs/msdnet
    parse   minutes
python -m experiments.bench.optimizers
    parse   an hour; test_bench.py
python -m experiments.bench.optimizers --names=lion,muon,sgd+sam --epochs=5
    run     --names=lion,muon,sgd+sam -> --names=lion; --epochs=5 -> --epochs=1; --out=optimizers
python -m experiments.bench.smaller
    parse   minutes
python -m experiments.bench.smaller --cases=filters --rounds=30
    parse   minutes
python -m experiments.bench.latency runs/digits
    run     --seconds=0.05; --rounds=1; --clients=2; --image=experiments/samples/digit3.png; --out=latency
python -m experiments.bench.latency lite0.safetensors exported/lite0_onnx --image=cat.jpg --clients=1,8,64
    parse   a minute
python -m experiments.bench.smaller --cases=blocks --out=runs/blocks
    parse   minutes
python -m experiments.bench.int8
    parse   minutes
python -m experiments.bench.int8 --cases=resnet50,vit_small_patch16 --rounds=50
    parse   minutes
python -m experiments.bench.together --config=configs/study.py:digits,model=resnet8
    parse   minutes; test_together.py
python -m experiments.bench.together --seeds=2,4,8,16 --config=configs/study.py:cifar10,model=resnet20
    parse   for a GPU, and needs a data set; test_together.py
python -m experiments.bench.ours '{"case": "steps", "model": "resnet20", "batch": 128, "size": 32}'
    run     "batch": 128 -> "batch": 2
python -m experiments.bench.peer '{"case": "steps", "model": "resnet20", "batch": 128, "size": 32}'
    parse   needs PyTorch
python -m experiments.bench.peer_speedrun --images=cifar10.npz --epochs=9.9 --width=64
    parse   needs PyTorch
python -m experiments.bench.tf_data '{"case": "data", "folder": "photos", "size": 224, "batch": 32, "batches": 30}'
    parse   needs TensorFlow
python -m experiments.compare experiments/results/studies/depth/digits
    run
python -m experiments.compare runs
    run     --nodisagreements
python -m experiments.compare runs --metric=loss --first=2 --nodisagreements --out=compared
    run
python -m experiments.compare runs/batch runs/group
    run     runs/batch -> runs/x; runs/group -> runs/aig
python -m experiments.compare runs/batch0 runs/batch1 runs/group0 runs/group1 --names=batch,group
    run     runs/batch0 -> runs/x; runs/batch1 -> runs/digits; runs/group0 -> runs/aig; runs/group1 -> runs/aig
python -m experiments.compare runs/sweeps/lr --pair=1,3
    run     runs/sweeps/lr -> runs; --pair=1,3 -> --pair=1,2
python -m experiments.corruptions --workdir=runs/x
    parse   half a minute; test_corruptions.py
python -m experiments.corruptions --workdir=runs/x --corruptions=fog,snow --severities=1,3,5 --select="share(0.2)"
    run
python -m experiments.corruptions --workdir=runs/x --corruptions=all --baseline=runs/digits
    parse   minutes; test_corruptions.py
python -m experiments.corruptions --workdir=runs/imagenet --baseline=alexnet
    parse   needs ImageNet
python -m experiments.explain --workdir=runs/x --indices=0,5,9 --method="grad_cam|guided_grad_cam"
    run
python -m experiments.explain --workdir=hf:timm/resnet50.a1_in1k --image=cat.jpg
    parse   downloads; train/test_published.py
python -m experiments.explain --workdir=runs/x --image=cat.jpg --method="occlusion(size=32, stride=8)"
    run     size=32 -> size=4; stride=8 -> stride=2
python -m experiments.explain --workdir=runs/x --image=both.jpg --target=cat,dog --method=grad_cam
    run     cat,dog -> 3,8
python -m experiments.explain --workdir=runs/x --indices=mistakes --target=top1,label
    run
python -m experiments.explain --workdir=runs/x --image=photos
    run
python -m experiments.frontier --workdir=runs/x --measure=bytes --dry_run
    run
python -m experiments.frontier --workdir=runs/x --measure=bytes --lose=0.5 --budget=30m
    parse   ten minutes; test_frontier.py
python -m experiments.frontier --workdir=runs/x --measure=time --methods=filters,blocks,exits --budget=2h
    parse   minutes; test_frontier.py
python -m experiments.frontier --workdir=runs/x --measure=mult_adds --duration="3 epochs" --jobs=1
    parse   ten minutes; test_frontier.py
python -m experiments.report
    run
python -m experiments.report --results=experiments/results --out=report
    run
python -m experiments.report --readme=README.md
    run
python -m experiments.report --docs=docs
    parse   minutes, and writes into the project; test_generated.py checks what it writes
python -m experiments.report.site
    parse   needs pdoc; test_site.py
python -m experiments.report.site --out=build/docs --noapi
    run
python -m experiments.run --list
    run
python -m experiments.run initialization --scale=digits --seeds=7
    parse   20 minutes; test_studies.py
python -m experiments.run depth --until=decided --most_seeds=20 --budget=2h
    parse   hours; test_sequential.py
python -m experiments.run all --scale=digits
    parse   hours; test_studies.py
python -m experiments.run depth --dry_run
    run
python -m experiments.run depth --watch
    parse   needs a running study; test_queue.py
python -m experiments.run depth --on=slurm --partition=gpu --gres=gpu:1 --time=2:00:00 --workers=16
    parse   needs a cluster; test_launch_slurm.py
python -m experiments.run my_study.py
    parse   test_adding.py runs it
python -m experiments.samples
    run     --out=drawn
python -m experiments.samples --out=samples
    run
python -m experiments.sweep --config=configs/digits.py --over optimizer.learning_rate=0.05,0.1,0.2 --over seed=0:3
    run     0.05,0.1,0.2 -> 0.05,0.1; seed=0:3 -> seed=0:2; --config.duration="2 steps"
python -m experiments.sweep --config=configs/cifar10.py:resnet20 --over model.norm=batch,group:8 --on=slurm
    parse   needs Slurm; test_sweep.py
python -m experiments.sweep --config=configs/digits.py --over 'optimizer.learning_rate=log(1e-3,1)' --random=50
    run     --random=50 -> --random=2; --config.duration="2 steps"
python -m experiments.sweep --config=configs/digits.py --over model.width=8,16,32 --halving=3 --dry_run
    run
python -m experiments.sweep --config=configs/digits.py --over seed=0:5 --json=experiments/results/digits.json
    run     seed=0:5 -> seed=0:2; --config.duration="2 steps"
python -m experiments.study.simulate
    parse   minutes; test_evidence.py
python -m experiments.study.simulate --rounds=400 --markdown
    parse   minutes; test_evidence.py
python -m models
    run
python -m models "*resnet*"
    run
python -m models resnet50
    run
python -m models.analysis resnet50 --resolution=224 --set norm=group --csv=cost.csv --chart=cost.png
    run
python -m models.analysis.textbook
    run
python -m models.weights list resnet50
    run
python -m models.weights import hf:timm/resnet50.a1_in1k --out resnet50.safetensors
    parse   downloads; models/weights/test_hub.py
python -m models.weights import torchvision:swin_t/IMAGENET1K_V1 --out swin_t.safetensors
    parse   downloads; models/weights/test_urls.py
python -m models.weights import --as hf:timm/resnet50.a1_in1k model.safetensors --out resnet50.safetensors
    parse   needs the file; train/test_photographs.py
python -m models.weights import --from torchvision resnet50.pth --model resnet50 --out resnet50.safetensors
    run     resnet50.pth -> torchvision.safetensors; --set width=8
python -m models.weights import --from timm r.bin --model resnet50 --new head --set num_classes=10 --out r.safetensors
    run     r.bin -> torchvision.safetensors; timm -> torchvision; --set width=8
python -m models.weights export --to torchvision resnet50.safetensors --out resnet50.pth
    run     resnet50.pth -> again.safetensors
python -m train --config=configs/digits.py --workdir=runs/digits
    run     runs/digits -> runs/again; --config.duration="2 steps"
python -m train --config=configs/cifar10.py:resnet20,norm=group --workdir=runs/x --config.optimizer.clip_norm=1
    run     runs/x -> runs/y; --config.data.source=arrays:cifar10.npz; --config.duration="2 steps"
python -m train --config=configs/cifar10.py:resnet56 --dry_run
    run     --config.data.source=arrays:cifar10.npz
python -m train --config=configs/imagenet.py:resnet50 --dry_run --topology=v5e:4x4
    parse   needs libtpu; train/test_forecast.py
python -m train --config=configs/digits.py --config.duration="40 epochs" --workdir=runs/digits --extend
    run     40 epochs -> 3 epochs
python -m train --workdir=runs/digits --evaluate=folder:/data/other_digits
    run     folder:/data/other_digits -> digits
python -m train.adaptive --workdir=runs/aig
    run
python -m train.adaptive --workdir=runs/msdnet
    run
python -m train.adaptive --workdir=runs/msdnet --budget=25e6,50e6
    run     25e6,50e6 -> 1e6,2e6
python -m train.adaptive --workdir=runs/msdnet --budget=25e6 --anytime
    run     25e6 -> 1e6
python -m train.average runs/x --checkpoints=all --out=runs/averaged
    run
python -m train.average runs/seed0 runs/seed1 runs/seed2 --greedy --out=runs/soup
    run     runs/seed0 -> runs/x; runs/seed1 -> runs/digits; runs/seed2 -> runs/digits
python -m train.data.prepare cifar10
    parse   downloads, with TensorFlow
python -m train.data.prepare cifar10 --data_dir=/data/tfds
    parse   downloads, with TensorFlow
python -m train.export --workdir=runs/x --format=safetensors --out=exported/x
    run
python -m train.export --workdir=runs/x --format=onnx --out=exported/x_onnx
    run
python -m train.export --workdir=runs/x --format=stablehlo --fold= --out=exported/x_hlo
    run
python -m train.export --workdir=runs/x --format=torch --torch_python=venv-torch/bin/python --out=x_torch
    parse   needs PyTorch; test_export.py
python -m train.export --workdir=runs/x --format=compressed --share="linear(conv=8, dense=5)" --out=exported/x_small
    run
python -m train.export --workdir=runs/x --format=onnx --quantize=int8 --lose=0.5 --out=exported/x_int8
    run
python -m train.export --workdir=runs/x --to=hf:me/digits --license=CC-BY-4.0
    parse   needs a token; train/test_published.py
python -m train.predict hf:timm/resnet50.a1_in1k cat.jpg
    parse   downloads; train/test_published.py
python -m train.predict runs/digits experiments/samples/*.png
    run
python -m train.predict runs/x cat.jpg dog.png
    run
python -m train.predict runs/x ~/photos
    run
python -m train.predict exported/x_onnx *.jpg --top=3 --out=predictions.png
    run
python -m train.predict exported/x_hlo cat.jpg --json
    run
python -m train.serve runs/digits
    parse   serves until it is stopped; train/serving/test_server.py
python -m train.serve exported/x_onnx --port=8080 --batch=16
    parse   serves until it is stopped; train/serving/test_server.py
python -m train.serve hf:timm/resnet50.a1_in1k
    parse   downloads; train/serving/test_server.py
python -m train.probe --config=configs/transfer.py:from=runs/x,to=cifar10
    parse   needs a data set
python -m train.probe --config=configs/transfer.py:from=runs/x,to=digits --endpoint=stage2 --classifiers=logistic
    run     --cache=cache
"""

CHECKS = {
    example: (how, note)
    for example, how, note in re.findall(r"^(python .*)\n    (run|parse) *(.*)$", TABLE, re.MULTILINE)
}


def usage(module: str) -> str:
    """Returns the text that --help of a command begins with."""
    path = ROOT / module.replace(".", "/")
    tree = ast.parse((path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "USAGE":
            return ast.literal_eval(node.value)
    return ast.get_docstring(tree) or ""


def in_help() -> list[str]:
    """Returns the examples in the help of every command and worker."""
    texts = map(usage, MODULES)
    return [line for text in texts for line in re.findall(r"^ *(python -m .*?)(?: {3,}.*)?$", text, re.MULTILINE)]


def changed(example: str, note: str) -> str:
    """Returns the command of an example with the changes of its row."""
    for change in filter(None, note.split("; ")):
        old, arrow, new = change.partition(" -> ")
        assert not arrow or old in example, (example, old)
        example = example.replace(old, new) if arrow else f"{example} {change}"
    return example
