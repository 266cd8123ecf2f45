"""The page: its viewer holds what the fields say, and works in a browser."""

import base64
import dataclasses
import io
import json
import re
import shutil
import time

import numpy as np
import pytest
from made_up import STRATEGIES
from PIL import Image
from selenium import webdriver

import nfcl_jax
from nfcl_jax.fields import FIELDS
from nfcl_jax.report import viewer
from nfcl_jax.report.report import write_report
from nfcl_jax.report.results import finished_runs, load_results
from nfcl_jax.report.shown import load_shown
from nfcl_jax.report.viewer import make_viewer
from nfcl_jax.scenarios import SCENARIOS


@pytest.fixture(scope="module")
def real_report(runs):
    """Of the small grid that was really run."""
    for scenario in SCENARIOS:
        for field in ("siren", "diner"):
            for strategy in STRATEGIES:
                workdir = runs(scenario, field, strategy).parents[1]
    write_report(workdir)
    return workdir


def test_the_report_has_everything(real_report):
    names = {path.name for path in (real_report / "figures").iterdir()}
    stems = (
        "domain_expansion_earlier_against_last", "domain_expansion_task_matrix",
        "signal_expansion_first_and_last",
        "reconstructions_patient001_cine_4", "reconstructions_patient001_ED_1",
    )  # fmt: skip
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    html = (real_report / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|https://arxiv.org)', html)
    assert "Cut down: 150 steps" in html


def pixels(picture):
    """Of one of the viewer's pictures, which takes their red."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))), float)[..., 0]


def test_the_viewer_holds_what_the_fields_say(real_report):
    html = (real_report / "report.html").read_text()
    data = json.loads(re.search(r'id="viewer-data">(.*?)</script>', html, re.S)[1])
    scan = next(s for s in load_shown(real_report) if s.image == "ED")
    shown = data["scans"]["patient001/ED"]
    names = [name for name in shown["views"] if name.startswith(("siren|", "diner|"))]
    assert len(names) == 2 * 2 * 3  # another test may have run the other fields too
    run = nfcl_jax.open_run(real_report / "cells/signal_expansion-diner-distillation-seed0")
    outputs = run.field("patient001", 2, "ED").at_voxels(np.arange(scan.intensities.size))
    outputs = outputs.reshape(*scan.shape, 5)
    for look, values, loss in (
        ("image", 255 * np.clip(outputs[..., 0], 0, 1), 4),  # of 255, as WebP leaves it
        ("mask", np.argmax(outputs[..., 1:], axis=-1), 0),
    ):
        picture, words = shown["views"][f"diner|distillation|mask|{look}"]
        slices = pixels(picture).reshape(scan.shape[2], scan.shape[1], scan.shape[0])
        assert np.sqrt(np.mean((slices.transpose(2, 1, 0) - values) ** 2)) <= loss
        assert re.match(r"PSNR \d+\.\d dB, SSIM|DSC \d\.\d\d", words)
    truth = pixels(shown["truth"]["mask"]["picture"])
    assert set(np.unique(truth)) == {0, 1, 2, 3}


def viewer_of(real_report, scans):
    runs = finished_runs(sorted(real_report.glob("cells/signal_expansion-siren-*")))
    return make_viewer(runs, scans, load_results(runs))


@pytest.mark.parametrize(
    ("budget", "slices"), [(1_000_000, [1, 2, 3, 4, 5, 6]), (200_000, [2, 5]), (1, [4])]
)
def test_a_large_viewer_leaves_out_slices_and_says_so(real_report, monkeypatch, budget, slices):
    monkeypatch.setattr(viewer, "MAX_VOXELS", budget)
    scans = [scan for scan in load_shown(real_report) if scan.image != "cine"]
    found = viewer_of(real_report, scans)
    assert json.loads(found.data)["scans"]["patient001/ED"]["slices"] == slices
    assert found.notes == [] or found.notes[0].startswith("One slice of ")
    assert bool(found.notes) == (len(slices) < 6)


def test_no_name_ends_the_pages_script_or_begins_one(real_report, monkeypatch):
    """The words of somebody else's run: here a scan's name, which its views repeat."""
    name = "patient<!--<script></script><script>alert(1)</script>"
    scan = next(scan for scan in load_shown(real_report) if scan.image == "ED")
    runs = finished_runs(sorted(real_report.glob("cells/signal_expansion-siren-*")))
    monkeypatch.setattr(viewer, "runs_of_scan", lambda runs, scan: (runs, []))
    monkeypatch.setattr(viewer, "views", lambda *_: ([], []))
    shown = [dataclasses.replace(scan, patient=name)]
    data = make_viewer(runs, shown, load_results(runs)).data
    assert "<" not in data and json.loads(data)["scans"][f"{name}/ED"]["patient"] == name


def test_a_scan_that_is_not_the_runs_is_not_shown(real_report):
    scans = [scan for scan in load_shown(real_report) if scan.image != "cine"]
    moved = dataclasses.replace(scans[0], affine=scans[0].affine + 1)
    found = viewer_of(real_report, [moved, scans[1]])
    assert list(json.loads(found.data)["scans"]) == [scans[1].name]
    assert "signal_expansion-siren-distillation-seed0" in found.notes[0]
    assert viewer_of(real_report, [moved]) is None


def test_a_run_whose_field_is_not_loaded_is_not_shown(real_report, monkeypatch):
    scans = [scan for scan in load_shown(real_report) if scan.image != "cine"]
    monkeypatch.delitem(FIELDS, "siren")
    assert viewer_of(real_report, scans) is None


@pytest.fixture(params=[(1200, "light"), (390, "dark")], ids=["desktop", "phone"])
def browser(request):
    """A headless Chromium of the given width and colour scheme."""
    if not shutil.which("chromedriver"):
        pytest.skip("no chromedriver here: the page is not opened in a browser")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    width, scheme = request.param
    phone = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    yield driver
    driver.quit()


def test_the_page_in_a_browser(real_report, browser):
    """No errors, nothing wider than the window, and every control changes what is shown."""
    browser.get((real_report / "report.html").as_uri())
    script = browser.execute_script
    painted = "return ['truth', 'reconstruction', 'error'].map(i => document.getElementById(i))"

    def pictures():
        """What the canvases show, once it has changed or half a second has passed."""
        time.sleep(0.5)
        return script(painted + ".map(c => c.toDataURL())")

    before = pictures()
    assert len(set(before)) == 3
    for control, value in [
        ("slice", "0"),
        ("look", "frame 3"),
        ("trained", "frame 3"),
        ("field", "diner"),
        ("strategy", "distillation"),
        ("image", "ES"),
        ("look", "mask"),
    ]:
        event = "input" if control == "slice" else "change"
        script(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(arguments[2]))",
            control, value, event,
        )  # fmt: skip
        after = pictures()
        assert after[1] != before[1], control
        before = after
    assert script("return document.getElementById('score').textContent").startswith("DSC")
    root = "document.documentElement"
    for details in ("", "document.querySelectorAll('details').forEach(d => d.open = true);"):
        assert script(f"{details} return {root}.scrollWidth <= {root}.clientWidth")
    assert browser.get_log("browser") == []
