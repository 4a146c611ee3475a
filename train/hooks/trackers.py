"""Weights & Biases and MLflow as hooks. TensorBoard needs none, because each run writes its file."""

# pyright: reportMissingImports=false

import os
import posixpath
import re
import secrets
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util

from train.recording import summary
from train.recording.tracking import Session, Tracker
from train.run import Run

LIMIT = 10  # seconds for a request to a server; the thread of the tracker tries again
FORBIDDEN = r"/\#?%:"  # no project of W&B has these characters in its name
PARAMS = 100  # parameters that MLflow takes at once
LONGEST = 500  # characters of a parameter that every MLflow server takes
LIMITS = {  # unless the environment says otherwise; MLflow's own are 120 s and 7 retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(LIMIT),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # so that MLflow logs to details.log, as all libraries do
}


class Wandb(Tracker):
    """Weights & Biases: config, metrics over "step", and the summary. Its files are in tracking/wandb in the workdir.

    Its environment variables count: WANDB_MODE=offline, WANDB_API_KEY, WANDB_ENTITY and so on. An offline run cannot be
    resumed there, so each process of a run writes all points, and the newest one replaces the others when it is synced.
    """

    install = "pip install -c constraints.txt -e '.[wandb]'"

    def __init__(self, project: str = "ablate", name: str = ""):
        if not project or set(project) & set(FORBIDDEN):
            raise ValueError(f"project={project!r} must be a name without any of {' '.join(FORBIDDEN)}")
        self._project, self._name, self._id = project, name, secrets.token_hex(4)

    def begin(self, run: Run, folder: Path, key: str) -> Session:
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # so that it never asks for a login on the terminal
        self._run = wandb.init(
            project=self._project,
            name=self._name or folder.parent.name,
            id=key or self._id,
            resume="allow",
            reinit="create_new",  # the runs of a sweep follow each other in one process
            dir=folder,
            config={**run.config, **summary.environment(run.parallel.devices)},
            settings=wandb.Settings(console="off", symlink=False, init_timeout=LIMIT, finish_timeout=LIMIT),
        )
        self._run.define_metric("*", step_metric="step")  # W&B drops what is logged at an earlier step of its own
        offline = f"offline; to upload: wandb sync {shlex.quote(self._run.settings.sync_dir)}"
        return Session(self._run.id, self._run.resumed, offline if self._run.offline else self._run.url or "")

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def end(self, state: str, summary: Mapping[str, Any]) -> None:
        self._run.summary.update({**summary})
        if state == "stopped":
            self._run.mark_preempting()  # so that it does not count as failed
        self._run.finish(exit_code=0 if state == "finished" else 1)


class MLflow(Tracker):
    """MLflow: the config as parameters, metrics, the numbers of the summary as summary/NAME, commit and device as tags.

    Without `uri`, it uses that of MLFLOW_TRACKING_URI, or the file mlflow.db in the working folder.
    """

    install = "pip install -c constraints.txt -e '.[mlflow]'"

    def __init__(self, experiment: str = "ablate", uri: str = "", name: str = ""):
        if not 0 < len(experiment) <= LONGEST:
            raise ValueError(f"experiment={experiment!r} must have 1 to {LONGEST} characters")
        self._experiment, self._uri, self._name = experiment, uri, name
        self._key, self._step = "", 0

    def begin(self, run: Run, folder: Path, key: str) -> Session:
        for variable, value in LIMITS.items():
            os.environ.setdefault(variable, value)
        import mlflow

        self._client = client = mlflow.MlflowClient(self._uri or None)
        found = client.get_experiment_by_name(self._experiment)  # two runs may create it at once: then this is repeated
        experiment = found.experiment_id if found else client.create_experiment(self._experiment)
        continues = bool(key and client.search_runs([experiment], f"attributes.run_id = '{key}'"))
        if continues:
            self._key = key
            client.update_run(key, status="RUNNING")
        elif not self._key:
            tags = {name: str(value) for name, value in summary.environment(run.parallel.devices).items()}
            self._key = client.create_run(experiment, tags=tags, run_name=self._name or folder.parent.name).info.run_id
        if not continues:
            config = flax.traverse_util.flatten_dict(run.config, sep=".")
            params = [mlflow.entities.Param(_name(name), str(value)[:LONGEST]) for name, value in config.items()]
            for start in range(0, len(params), PARAMS):
                client.log_batch(self._key, params=params[start : start + PARAMS])
        return Session(self._key, continues, f"run {self._key} in {client.tracking_uri}")

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        self._client.log_batch(self._key, [Metric(_name(name), value, now, step) for name, value in values.items()])
        self._step = step

    def end(self, state: str, summary: Mapping[str, Any]) -> None:
        self.logged(self._step, {f"summary/{k}": v for k, v in summary.items() if isinstance(v, (int, float))})
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[state]
        self._client.set_terminated(self._key, status)


def _name(text: str) -> str:
    """Returns a name that MLflow takes."""
    return posixpath.normpath(re.sub(r"[^\w./ :-]", "_", text))[:250]
