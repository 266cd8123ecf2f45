"""The page: its viewer holds what the fields say, and works in a browser."""

import base64
import dataclasses
import io
import itertools
import json
import re
import shutil
import time

import numpy as np
import pytest
from made_up import STRATEGIES
from PIL import Image
from selenium import webdriver
from selenium_axe_python import Axe

import nfcl_jax
from nfcl_jax import strategies
from nfcl_jax.config import make_config
from nfcl_jax.data.cohorts import read_cohort
from nfcl_jax.fields import FIELDS
from nfcl_jax.report import viewer
from nfcl_jax.report.report import write_report
from nfcl_jax.report.results import finished_runs, load_results
from nfcl_jax.report.shown import load_shown, save_shown
from nfcl_jax.report.viewer import make_viewer
from nfcl_jax.runner import Caller, run
from nfcl_jax.scenarios import SCENARIOS


@pytest.fixture(scope="module")
def real_report(runs, tmp_path_factory):
    """Of a small grid that was really run."""
    workdir = tmp_path_factory.mktemp("report")
    for cell in itertools.product(SCENARIOS, ("siren", "diner"), STRATEGIES):
        run = runs(*cell)
        shutil.copytree(run, workdir / "cells" / run.name)
    shutil.copytree(run.parents[1] / "shown", workdir / "shown")
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
    views = {tuple(view[:4]): view[4:] for view in shown["views"] if view[0] in ("siren", "diner")}
    assert len(views) == 2 * 2 * 3  # another test may have run the other fields too
    run = nfcl_jax.open_run(real_report / "cells/signal_expansion-diner-distillation-seed0")
    outputs = run.field("patient001", 2, "ED").at_voxels(np.arange(scan.intensities.size))
    outputs = outputs.reshape(*scan.shape, 5)
    for look, values, loss in (
        ("image", 255 * np.clip(outputs[..., 0], 0, 1), 0.02 * 255),  # as the page says
        ("mask", np.argmax(outputs[..., 1:], axis=-1), 0),
    ):
        picture, words = views["diner", "distillation", "mask", look]
        slices = pixels(picture).reshape(scan.shape[2], scan.shape[1], scan.shape[0])
        assert np.sqrt(np.mean((slices.transpose(2, 1, 0) - values) ** 2)) <= loss
        assert re.match(r"PSNR \d+\.\d dB, SSIM|DSC \d\.\d\d", words)
    truth = pixels(shown["truth"]["mask"]["picture"])
    assert set(np.unique(truth)) == {0, 1, 2, 3}


def viewer_of(real_report, scans):
    runs = finished_runs(sorted(real_report.glob("cells/signal_expansion-siren-*")))
    return make_viewer(runs, scans, load_results(runs))


@pytest.mark.parametrize(
    ("budget", "slices"), [(1_000_000, [1, 2, 3, 4, 5]), (60_000, [2, 5]), (1, [3])]
)
def test_a_large_viewer_leaves_out_slices_and_says_so(real_report, monkeypatch, budget, slices):
    monkeypatch.setattr(viewer, "MAX_VOXELS", budget)
    scans = [scan for scan in load_shown(real_report) if scan.image != "cine"]
    found = viewer_of(real_report, scans)
    assert json.loads(found.data)["scans"]["patient001/ED"]["slices"] == slices
    assert found.notes == [] or found.notes[0].startswith("One slice of ")
    assert bool(found.notes) == (len(slices) < 5)


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


def test_a_run_whose_field_is_not_loaded_is_not_shown(real_report):
    scans, loaded = [scan for scan in load_shown(real_report) if scan.image != "cine"], dict(FIELDS)
    del FIELDS["siren"]
    found = viewer_of(real_report, scans)
    FIELDS.clear()
    FIELDS.update(loaded)  # in their order
    assert found is None


# Names as somebody else's folders and code may have them.
ANY = f"\"'&`|&lt;$x_$\N{RIGHT-TO-LEFT OVERRIDE}{'a' * 90}"
HOSTILE = {
    "patient": f"patient<!--<script>{ANY}",
    "field": "constructor",
    "strategy": f"x</script><script>harm = 1</script><img src=x onerror='harm = 1'>{ANY}",
}
TITLE = "<b>$x_$</b>"


@pytest.fixture(scope="module")
def hostile_report(phantom_root, tmp_path_factory):
    """Of three steps on a patient, with a field and a strategy, that have such names."""
    workdir, scenario = tmp_path_factory.mktemp("hostile"), "signal_expansion"
    name, known = HOSTILE["strategy"], strategies.STRATEGIES
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FIELDS, HOSTILE["field"], type("F", (FIELDS["siren"],), {"title": TITLE}))
        patch.setitem(known, name, known["distillation"]._replace(title=name))
        scans = read_cohort(phantom_root, [scenario], ["patient001"]).scans[scenario]
        scans = [dataclasses.replace(scan, patient=HOSTILE["patient"]) for scan in scans]
        for number, strategy in enumerate(("finetune", name)):
            config = make_config(scenario, HOSTILE["field"], strategy)
            config |= {"num_steps": 3, "batch_size": 64}
            config["field"]["width"] = 8
            twin = workdir / "0" if number else None
            run(config, scans, workdir / str(number), Caller(twin=twin))
        save_shown(workdir, scans, [HOSTILE["patient"]])
        write_report(workdir)
    return workdir


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


PAINTED = "return ['truth', 'reconstruction', 'error'].map(i => document.getElementById(i))"
FITS = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true);"


def pictures(browser):
    """What the canvases show, half a second later."""
    time.sleep(0.5)
    return browser.execute_script(PAINTED + ".map(c => c.toDataURL())")


def test_the_page_in_a_browser(real_report, browser):
    """No errors, nothing wider than the window, and every control changes what is shown."""
    browser.get((real_report / "report.html").as_uri())
    script = browser.execute_script
    before = pictures(browser)
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
        after = pictures(browser)
        assert after[1] != before[1], control
        before = after
    assert script("return document.getElementById('score').textContent").startswith("DSC")
    assert script(FITS) and script(OPEN_ALL + FITS)
    assert browser.get_log("browser") == []


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_a_page_full_of_hostile_names_shows_them_and_runs_none(hostile_report, browser):
    browser.get((hostile_report / "report.html").as_uri())
    script = browser.execute_script
    assert script("return window.harm") is None
    assert script("return document.querySelectorAll('script').length") == 2
    assert len(set(pictures(browser))) == 3
    shown = {id: script(f"return document.getElementById('{id}').value") for id in HOSTILE}
    assert shown == HOSTILE | {"strategy": "finetune"}
    listed = script("return [...document.getElementById('strategy').options].map(o => o.text)")
    assert listed == ["finetune", HOSTILE["strategy"]]
    heads = script("return [...document.querySelectorAll('tbody th')].map(th => th.textContent)")
    assert {TITLE, HOSTILE["strategy"]} <= set(heads)
    assert script(FITS) and script(OPEN_ALL + FITS)
    assert browser.get_log("browser") == []


def test_the_page_can_be_used_without_seeing_it_and_without_a_mouse(real_report, browser):
    browser.get((real_report / "report.html").as_uri())
    pictures(browser)
    script, axe = browser.execute_script, Axe(browser)
    browser.set_script_timeout(300)
    axe.inject()
    for state in ("closed", "open"):
        found = axe.run(options={"resultTypes": ["violations"]})["violations"]
        wrong = [f"{v['id']}: {v['nodes'][0]['html']}" for v in found]
        assert not wrong, state
        script(OPEN_ALL)
    # What axe cannot know: what is said when something changes, and where the keyboard leads.
    slider = browser.find_element("id", "slice")
    assert slider.get_attribute("aria-valuetext") == script(
        "return document.getElementById('slice-number').textContent"
    )
    said = "return document.querySelector('[role=status]').textContent"
    assert script(said).startswith("PSNR")
    labels = script(PAINTED + ".map(c => c.ariaLabel)")
    assert labels == [f"{name}: frame 1, slice 3" for name in ("scan", "reconstruction", "error")]
    headers = "return document.querySelectorAll('th:not([scope])').length"
    assert script(headers) == 0
    for box in browser.find_elements("class name", "scroll"):
        box.parent.execute_script("arguments[0].focus()", box)
        assert browser.switch_to.active_element == box
    marker = (
        "const d = document.querySelector('details.claim'); d.open = arguments[0];"
        "return getComputedStyle(d.querySelector('summary'), '::before').transform"
    )
    assert script(marker, True) != script(marker, False)
