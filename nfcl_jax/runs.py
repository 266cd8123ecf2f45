"""Opens the folder of a finished or unfinished run: what is there, its fields, and NIfTI files.

run = nfcl_jax.open_run("runs/siren")
field = run.field("patient001", task=4)
run.to_nifti("patient001", task=4, path="p1.nii.gz", spacing=(1, 1, 2), times=20)
"""

import dataclasses
import html
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nfcl_jax import checkpoints, nifti, run_folder, sizes
from nfcl_jax.config import read_config
from nfcl_jax.data.sequence import time_range_of
from nfcl_jax.data.table import Row
from nfcl_jax.errors import ConfigError
from nfcl_jax.fields import FIELDS, Params, create_field
from nfcl_jax.fitted import FittedField
from nfcl_jax.geometry import Grid, scanner_affine
from nfcl_jax.learning import learn_next
from nfcl_jax.new_row import new_of
from nfcl_jax.nifti import Sampling, as_volume, outputs_of, sampled
from nfcl_jax.overview import in_words, overview
from nfcl_jax.params import num_output_channels
from nfcl_jax.records import Score
from nfcl_jax.rows import read_rows
from nfcl_jax.scenarios import SEQUENCE, all_scenarios, num_frames, tasks_of


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A run's folder.

    Attributes:
      workdir: the folder.
      config: the config that made it, as nested dictionaries.
      scans: for each scan its patient, image, shape, frames and spacing, as in patients.json.
      tasks: numbers of the tasks that have a checkpoint, from 1.
    """

    workdir: Path
    config: dict[str, Any]
    scans: list[dict[str, Any]]
    tasks: tuple[int, ...]
    _rows: tuple[Row, ...] = dataclasses.field(default=(), compare=False)  # that `learn` was given
    _metadata: dict[int, Any] = dataclasses.field(default_factory=dict, init=False, compare=False)

    @property
    def scores(self) -> pd.DataFrame:
        """metrics.csv: patient, image, trained_task, evaluated_task, metric, value; empty before
        the first task is learned.

        Raises:
          RunError: if the run left other rows.
        """
        learned, rows = min(max(self.tasks, default=0), len(tasks_of(self.config))), []
        if learned:
            rows, _ = read_rows(self.workdir, self.config, run_folder.names_of(self.scans), learned)
        return pd.DataFrame(rows, columns=Score._fields)

    def table(self) -> pd.DataFrame:
        """A row for each scan, see `overview`."""
        return overview(self.scans, tasks_of(self.config), self.scores, self._of_table())

    def __repr__(self) -> str:
        table = self.table().to_string(index=False)
        return f"{self.workdir}: {self._what()}\n{table}"

    def _repr_html_(self) -> str:
        table = self.table().to_html(index=False)
        return f"<p><b>{html.escape(str(self.workdir))}</b>: {html.escape(self._what())}</p>{table}"

    def _what(self) -> str:
        return in_words(self.config, len(self.tasks), len(self.scans))

    def params(
        self, patient: str | None = None, task: int | None = None, image: str | None = None
    ) -> Params:
        """One scan's parameters after a task, as numpy arrays, nothing else being read; see `field`
        for the arguments and errors."""
        return self._params(self._scan(patient, image), self._task(task))[1]

    def _params(self, scan: dict[str, Any], task: int) -> tuple[dict[str, Any], Params]:
        """A scan's record as the task left it, a table's may have grown since, and parameters."""
        if task not in self._metadata:  # takes longer to read than a scan's parameters
            self._metadata[task] = checkpoints.read_metadata(self.workdir, task)
        read = self._metadata[task]
        about, names = read.about, (scan["patient"], scan["image"])
        run_folder.refuse_another_checkpoint(self.workdir, task, about, self.config, [scan])
        (then,) = (s for s in about["scans"] if (s["patient"], s.get("image")) == names)
        like = run_folder.params_like(self.config, then, task)
        return then, checkpoints.load(self.workdir, task, *names, like, read)

    def field(
        self,
        patient: str | None = None,
        task: int | None = None,
        image: str | None = None,
        units: str = "grid",
        interpolate: bool = False,
    ) -> FittedField:
        """One patient's field after a task, as a function of coordinates.

        Args:
          patient: such as "patient001"; may be left out where the run has one.
          task: number of the task, from 1; the last one that is learned if None.
          image: "cine", "ED" or "ES"; may be left out where the patient has one image.
          units: of the coordinates: "grid", [-1, 1] along each axis, or "mm", scanner coordinates
            in mm and the time as a fraction of the cardiac cycle.
          interpolate: whether DINER answers between its voxels, by linear interpolation in its
            table; otherwise it refuses.

        Raises:
          KeyError: if the run has no such patient, image or task.
          CheckpointError: if the checkpoint is damaged, or of a later version.
          RunError: if config.json or patients.json are not those of the checkpoint.
          ValueError: for other units.
        """
        read = self._params(self._scan(patient, image), self._task(task))
        return self._field(*read, units, interpolate)

    def learn(self, image: Any = None, **new: Any) -> "Run":
        """Learns another image, a mask, or both, from the last checkpoint; see `nfcl_jax.learn`,
        which begins such a run. What was learned through this object is scored again; what is known
        from the folder alone is not measured.

        Args:
          image: as there, on the same grid. None if there is a mask alone.
          **new:
            mask: an image of labels, any whole numbers.
            time: of the scan, within the run's range; that of the last one if None.
            channel: the name of the modality, "image" if None; of a mask without an image, its
              name, "mask" if None.
            intensity_range: which values are 0 and 1; the smallest and the largest if None, and the
              ends of its type for a picture.
            spacing: voxel size of an array along its axes, in mm; that of the grid if None.
            colour: whether the last axis of an array are three colours.
            on_progress: called between chunks of steps with a `records.Progress`.

        Returns:
          The run with the new task; this one if there was nothing new.

        Raises:
          ConfigError: if the run is another scenario's or a table's.
          DataError: if the image cannot be used.
          RunError: if the folder is no longer there.
        """
        if not self._of_table():
            raise ConfigError(f"{self.workdir}: the tasks of {self.config['scenario']} are fixed.")
        rows = learn_next(self.workdir, self.config, self._rows, new_of(image, True, new))
        return open_run(self.workdir, rows)

    def _field(self, scan: dict[str, Any], params: Params, units: str, interpolate: bool):
        affine = scanner_affine(np.array(scan["affine"]), scan["spacing"])
        times = scan.get("times") and tuple(scan["times"])
        place = tuple(scan["frame_numbers"]), times, self._time_range()
        grid = Grid(tuple(scan["shape"]), affine, *place)
        channels = num_output_channels(params)
        module = create_field(self.config["field"], channels, grid.size, grid.space)
        return FittedField(module, params, grid, units, interpolate)

    def to_nifti(
        self,
        patient: str,
        task: int,
        path: str | Path,
        image: str | None = None,
        output: str = "image",
        **sampling: Any,
    ) -> Path:
        """Writes what a field makes of a scan as a NIfTI file that lies over the scan.

        The image is in [0, 1], the ends of the scan's `intensity_range` or, in a table, of the
        `range` that patients.json has of its row; the mask has its labels.
        A cine has the frames that were learned by then, along the fourth axis, whose voxel size is
        the time between two as a fraction of the cardiac cycle; of a table's, in its own units, and
        the mean where times are not equidistant.

        Args:
          patient: as for `field`.
          task: as for `field`.
          path: of the file, ending in .nii or .nii.gz.
          image: as for `field`.
          output: "image", "mask", or "probabilities" of the mask's classes, along the last axis.
          **sampling: `spacing`, `times` and `interpolate`, those of `Sampling`.

        Returns:
          The path.

        Raises:
          ValueError: for another output, spacing, number of times or ending, or more voxels than
            can be; for a mask before it was learned, and for a DINER between its voxels without
            `interpolate`.
          KeyError, CheckpointError, RunError: as for `field`.
        """
        scan, wanted = self._scan(patient, image), Sampling(**sampling)
        nifti.check_name(path)
        field = self.field(patient, task, image, "grid", wanted.interpolate)
        tasks = tasks_of(self.config)[:task]
        outputs = outputs_of(tasks)
        if output not in outputs:
            raise ValueError(
                f"output must be one of {', '.join(outputs)} after task {task}, got {output!r}."
            )
        axes, affine, voxel, first_time = sampled(scan, wanted, num_frames(tasks))
        head = outputs[output]
        channels = field.on_grid(axes)[..., head.channels]
        volume = as_volume(head, channels, head.name != output)
        voxel += [1.0] * (volume.ndim - len(voxel))
        return nifti.write(path, volume, affine, voxel, first_time)

    def size(
        self, patient: str, task: int, image: str | None = None, root: str | Path | None = None
    ) -> pd.DataFrame:
        """What one field takes on disk, beside the scan's voxels by gzip, with its weights in
        float32, bfloat16 and 8 bits, and the scores that it keeps: the means over what was learned.

        Args:
          patient: as for `field`.
          task: as for `field`.
          image: as for `field`.
          root: the folder with the scans; None is where the run found them.

        Raises:
          DataError: if the scan's files cannot be read, or hold another scan.
          KeyError, CheckpointError, RunError: as for `field`.
        """
        if self._of_table():
            raise ValueError("no sizes of a table's fields: files of scans may be gone.")
        record = self._scan(patient, image)
        root = Path(root or self.config["data"]["root"] or self.workdir / "phantom")
        params = self.params(patient, task, image)
        scan, voxels = sizes.scan_of(record, self.config, root, task)
        tasks = tasks_of(self.config)[:task]

        def score(other: Params) -> dict[str, float]:
            return sizes.kept_scores(self._field(record, other, "grid", False), tasks, scan)

        return pd.DataFrame(sizes.table(params, voxels, score))

    def _of_table(self) -> bool:
        return self.config["scenario"] == SEQUENCE

    def _time_range(self) -> tuple[float, float]:
        """Of a table's scans."""
        return time_range_of(self.config["data"].get("time_range", "")) or (-1.0, 1.0)

    def _task(self, task: int | None) -> int:
        task = max(self.tasks, default=0) if task is None else task
        if task not in self.tasks:
            raise KeyError(f"no checkpoint of task {task}; there are {list(self.tasks)}")
        return task

    def _scan(self, patient: str | None, image: str | None) -> dict[str, Any]:
        if patient and not image and "/" in patient:  # as a table has it
            patient, _, image = patient.partition("/")
        found = [scan for scan in self.scans if patient in (None, scan["patient"])]
        found = [scan for scan in found if image in (None, scan["image"])]
        if len(found) != 1:
            known = ", ".join(f"{scan['patient']}/{scan['image']}" for scan in self.scans)
            what = f"{patient}/{image}" if image else patient or self.workdir
            problem = "say which scan" if found else "not in this run"
            raise KeyError(f"{what}: {problem}; there are {known}")
        return found[0]


def open_run(workdir: str | Path, rows: tuple[Row, ...] = ()) -> Run:
    """Opens a run's folder; nothing but its description is read. `rows` are of
    `learning.learn_next`, which scores what they hold.

    Raises:
      FileNotFoundError: if the folder holds no run.
      RunError: if config.json or patients.json are none.
      ValueError: if the run's field or scenario is defined in a file that was not loaded.
    """
    workdir = Path(workdir)
    config, scans = workdir / "config.json", workdir / "patients.json"
    for path in (config, scans):
        if not path.is_file():
            below = ("cells/*/config.json", f"{run_folder.PATIENTS}/*/*/config.json")
            others = [other for pattern in below for other in sorted(workdir.glob(pattern))]
            hint = f" {others[0].parent} would be one." if others else ""
            raise FileNotFoundError(f"{path}: missing; {workdir} is not the folder of a run.{hint}")
    tasks = checkpoints.finished_tasks(workdir)
    records = run_folder.of_scans(run_folder.read_records(scans))
    given = read_config(config)
    for kind, name, known in (
        ("scenario", given["scenario"], all_scenarios()),
        ("field", given["field"]["name"], FIELDS),
    ):
        if name not in known:
            raise ValueError(
                f"{config}: unknown {kind} {name!r}; there are {', '.join(known)}. Import the file "
                "that defines it first."
            )
    return Run(workdir, given, records, tasks, rows)
