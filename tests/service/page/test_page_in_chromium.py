"""The page in a real browser, on a real service: what one sees and can do, by keyboard too, and what stays inside."""

import csv
import json
import logging
import re
import time
from typing import get_args

import pytest

from chromium import UNNAMED, chromium, click, go, needs_chromium, says, sign_in
from http_requests import SECRET, done_job, job_body, open_client, status_of, upload
from rapt.service.jobs.method_options import MethodOptions
from running_service import running_service, save_privatized, wait_until
from tiny_backbones import tiny_backbone
from tuning_material import separable_file

# Slow, because a browser starts: `make test` has the tests of the page that need none.
pytestmark = [needs_chromium, pytest.mark.slow]

KEY = "correct-horse-battery-staple"
IDS = "2204 2307 6659"
SECTIONS = ("files", "jobs", "models", "account", "tenants", "operation")


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return tiny_backbone("llama", tmp_path_factory.mktemp("llama") / "writer")


@pytest.fixture(scope="module")
def service(backbones, writer, tmp_path_factory):
    """A service with a key, an encoder and a decoder."""
    both = {**backbones, writer.model: writer}
    with running_service(tmp_path_factory.mktemp("data"), backbones=both, settings={"admin_key": KEY}) as url:
        yield url


@pytest.fixture(scope="module")
def api(service):
    headers = {"authorization": f"Bearer {KEY}"}
    with open_client(service, headers=headers) as client:
        yield client


@pytest.fixture(scope="module")
def plain_file(backbones, tmp_path_factory):
    """A privatized file without plain tokens, on the disk."""
    file = separable_file(backbones["bert-tiny"], records=32)
    return save_privatized(file, tmp_path_factory.mktemp("files") / "reviews.rapt.jsonl")


@pytest.fixture(scope="module")
def tuned(api, plain_file):
    """A tuned model, its job finished."""
    file = upload(api, plain_file).json()
    return done_job(api, job_body(file["id"], n_epochs=6))["fine_tuned_model"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser, service):
    """The browser, signed in as the provider."""
    browser.size(1000, 800)
    browser.prefer("light")
    browser.open(f"{service}/")
    sign_in(browser, KEY)
    return browser


def test_a_key_stays_in_the_tab_and_is_forgotten_by_signing_out(browser, service):
    browser.open(f"{service}/")
    browser.wait_for("!document.getElementById('sign-in').hidden")
    browser.type("a-key-that-nobody-has")  # the focus is there already
    browser.enter()
    says(browser, "Invalid API key")
    assert "x-request-id req_" in browser.run("document.getElementById('status').textContent")
    sign_in(browser, KEY)
    assert "Tenant local, admin" in browser.text()
    assert KEY not in browser.run(
        "location.href + document.cookie + JSON.stringify({...localStorage, ...sessionStorage})"
    )
    assert not any(KEY in address for address in browser.requests())
    browser.run("location.reload()")
    browser.wait_for("document.readyState === 'complete' && !document.getElementById('sign-in')?.hidden")
    browser.run("document.getElementById('keep').click()")
    sign_in(browser, KEY)
    assert browser.run("JSON.stringify(sessionStorage)") == json.dumps({"rapt-key": KEY}, separators=(",", ":"))
    click(browser, "Sign out")
    says(browser, "forgotten the key")
    assert browser.run("sessionStorage.length + localStorage.length + document.cookie.length") == 0
    assert browser.complaints() == []


def test_the_browser_loads_nothing_from_elsewhere_and_runs_no_script_of_anybody_else(page, service):
    for name in SECTIONS:
        go(page, name)
    assert all(address.startswith(f"{service}/") for address in page.requests())
    assert page.complaints() == []
    for attempt in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.setAttribute('onclick', 'window.injected = true')",
        "document.head.append(Object.assign(document.createElement('script'), { text: 'window.injected = true' }))",
    ):
        caught = f"(() => {{ try {{ {attempt}; return 'done'; }} catch (error) {{ return error.name; }} }})()"
        assert page.run(caught) == "TypeError", attempt
    assert page.run("window.injected") is None
    assert any("require" in said for said in page.complaints())


def test_plain_text_is_refused_before_it_leaves_and_a_privatized_file_is_tuned_on_and_watched(
    page, api, plain_file, tmp_path
):
    (tmp_path / "plain.csv").write_text(f"text,label\n{SECRET},1\n")
    go(page, "files")
    page.choose_file("input[type=file]", tmp_path / "plain.csv")
    before = len(api.get("/v1/files").json()["data"])
    page.events.clear()
    click(page, "Upload")
    says(page, "nothing was sent")
    assert page.requests() == []
    page.choose_file("input[type=file]", plain_file)
    click(page, "Upload")
    says(page, "Uploaded reviews.rapt.jsonl: 32 records.")
    assert len(api.get("/v1/files").json()["data"]) == before + 1
    page.run("document.querySelector('details').open = true")
    page.wait_for("document.body.innerText.includes('Labels were sent')")
    shown = page.text()
    for words in ("laplace, η = 60 per embedding distance", "in clear", "it protects nothing", "no, yes"):
        assert words in shown
    offered = page.run("[...document.querySelectorAll('details select')].map((one) => one.value)")
    assert offered == ["bert-tiny", "auto"]
    methods = page.run("[...document.querySelectorAll('details select')[1].options].map((one) => one.value)")
    assert {*methods, "supervised"} == set(get_args(MethodOptions.model_fields["type"].annotation))
    page.run("document.querySelector('details input[type=number]').value = '10'")
    page.events.clear()
    click(page, "Tune on this file")
    page.wait_for("document.title.startsWith('Jobs')")
    sent = [e["params"]["request"].get("postData", "") for e in page.events if "request" in e.get("params", {})]
    assert any('"method":{"type":"auto","auto":{"hyperparameters":{"n_epochs":10}}}' in body for body in sent)
    page.wait_for("document.querySelector('.state.succeeded') && document.querySelectorAll('.curves polyline').length")
    job = api.get("/v1/fine_tuning/jobs").json()["data"][0]["id"]
    events = api.get(f"/v1/fine_tuning/jobs/{job}/events").json()["data"]
    last = next(event["data"] for event in events if event["data"])
    end = f"{last['train_loss']:.{3 if last['train_loss'] < 0.1 else 2}f} at step {last['step']}"
    page.wait_for(f"document.querySelector('figure').getAttribute('aria-label').includes('{end}')")
    assert page.complaints() == []


def test_a_job_is_paused_resumed_and_cancelled_from_the_page(page, api, plain_file):
    file = upload(api, plain_file).json()
    job = api.post("/v1/fine_tuning/jobs", json=job_body(file["id"], n_epochs=1000)).json()["id"]
    go(page, "jobs")
    for words, status in (("Pause", "paused"), ("Resume", "running")):
        click(page, words)
        wait_until(lambda status=status: status_of(api, job) == status)
    click(page, "Cancel")
    page.wait_for("document.querySelector('dialog[open]')")
    click(page, "No", inside="document.querySelector('dialog')")
    page.wait_for("!document.querySelector('dialog')")
    assert status_of(api, job) in ("queued", "running")
    click(page, "Cancel")
    click(page, "Cancel the job", inside="document.querySelector('dialog')")
    wait_until(lambda: status_of(api, job) == "cancelled")
    says(page, "Nothing of it was kept")
    page.wait_for("document.querySelector('.state').textContent === 'cancelled'")


def test_events_that_are_asked_for_twice_at_once_are_shown_once(page, api, tuned):
    """A button's look and the page's own, at the same time, showed every new event twice."""
    job = api.get("/v1/fine_tuning/jobs").json()["data"][-1]
    shown = page.run(
        f"""import("./page/job_view.js").then(async ({{ JobView }}) => {{
          const view = new JobView({json.dumps(job)});
          await Promise.all([view.poll(), view.poll()]);
          return [view.events.map((event) => event.id), view.log.children.length];
        }})"""
    )
    events = api.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json()["data"]
    assert shown == [[event["id"] for event in events], len(events)]


def test_ids_that_are_tried_are_answered_as_by_the_api_and_stand_in_no_address_and_no_log(
    page, api, tuned, plain_file, caplog, tmp_path
):
    go(page, "models")
    page.wait_for("document.querySelector('.item[open] textarea')")
    card = page.run("document.querySelector('.item[open]').textContent")
    assert "Accuracy on its training text" in card
    assert "Training loss" in card
    box = "document.querySelector('.item[open] form')"
    page.events.clear()
    page.run(f"{box}.querySelector('textarea').value = {json.dumps(SECRET)}")
    click(page, "Predict", inside=box)
    says(page, "words are not privatized")
    page.run(f"{box}.querySelector('textarea').value = {json.dumps(IDS)}")
    click(page, "Predict", inside=box)
    says(page, "Tick that the ids were privatized")
    assert page.requests() == []
    with caplog.at_level(logging.DEBUG):
        page.run(f"{box}.querySelector('.choice input').click()")
        click(page, "Predict", inside=box)
        says(page, "Answered 1 text.")
    assert "2204" not in caplog.text
    assert [address.partition("/v1/")[2] for address in page.requests()] == ["classify"]
    assert "2204" not in page.run("location.href")
    values = page.run(f"[...{box}.querySelectorAll('.answer .value')].map((one) => one.textContent)")
    # A file with labels: they stay here, and the manifest is made anew.
    page.events.clear()
    page.choose_file(".item[open] form input[type=file]", plain_file)
    click(page, "Predict", inside=box)
    says(page, "Answered 32 texts.")
    sent = json.loads(next(e["params"]["request"]["postData"] for e in page.events if "request" in e.get("params", {})))
    assert sent["manifest"]["labels"] is None
    assert not any("label" in record for record in sent["records"])
    found = api.post("/v1/classify", json=sent).json()
    rows = [(max(answer["probabilities"]), answer["probabilities"]) for answer in found["predictions"]]
    shown = page.run(f"[...{box}.querySelectorAll('.answer tbody tr')].map((row) => row.innerText.split('\\t'))")
    assert len(shown) == len(rows) == 32
    for place, (line, (best, shares)) in enumerate(zip(shown, rows, strict=True), 1):
        label = found["labels"][shares.index(best)]
        assert line[:1] + line[2:] == [str(place), label, *(f"{100 * share:.1f} %" for share in shares)]
    assert len(values) == 2
    assert abs(sum(float(value.split()[0]) for value in values) - 100) < 0.2
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    click(page, "Download CSV", inside=box)
    wait_until((tmp_path / "predictions.csv").exists)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert head == ["text", "tokens", "label", *(f"p({label})" for label in found["labels"])]
    assert [[float(cell) for cell in line[3:]] for line in lines] == [shares for _, shares in rows]
    assert page.complaints() == []


def test_a_decoder_writes_into_the_page(page, writer, tuned):
    ids = [int(number) for number in writer.bundle.eligible[:5]]
    go(page, "models")
    page.run("[...document.querySelectorAll('.item')].at(-1).open = true")
    box = "[...document.querySelectorAll('.item')].at(-1)"
    page.wait_for(f"{box}.querySelector('textarea')")
    page.run(f"{box}.querySelector('textarea').value = {json.dumps(' '.join(map(str, ids)))}")
    page.run(f"{box}.querySelector('.choice input').click()")
    page.run(f"{box}.querySelector('.fields input').value = '60'")
    click(page, "Write", inside=box)
    says(page, "Answered 1 text.")
    assert page.run(f"{box}.querySelector('.written').textContent.length") > 0
    assert page.complaints() == []


@pytest.fixture(scope="module")
def validated(api, backbones, tmp_path_factory):
    """A job with a reconstruction loss, judged on a validation file after each epoch; and its metrics, oldest first."""
    folder = tmp_path_factory.mktemp("validated")
    files = []
    for name, records in (("training", 64), ("validation", 32)):
        file = separable_file(backbones["bert-tiny"], records=records, plain=4, seed=records)
        files.append(upload(api, save_privatized(file, folder / f"{name}.jsonl")).json()["id"])
    body = job_body(files[0], n_epochs=4, reconstruction={"weight": 0.5})
    job = done_job(api, body | {"validation_file": files[1], "suffix": "judged"})
    events = api.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json()["data"]
    return job, [event["data"] for event in events[::-1] if event["type"] == "metrics"]


def test_each_loss_has_an_axis_of_its_own_and_its_values_are_read_by_keyboard_and_pointer(page, validated):
    job, data = validated
    go(page, "jobs")
    view = f"[...document.querySelectorAll('.item')].find((one) => one.dataset.search.includes('{job['id']}'))"
    page.wait_for(f"{view}?.querySelector('.value small').textContent.includes('in validation')")
    line = page.run(f"{view}.querySelector('.value').innerText")
    assert f"{100 * data[-1]['full_valid_mean_token_accuracy']:.1f} % in validation" in line, "without being opened"
    assert f" · {job['finished_at'] - job['created_at']} s" in line
    page.run(f"for (const one of document.querySelectorAll('.item')) one.open = one === {view}")
    page.wait_for(f"{view}.querySelectorAll('polyline').length === 5")
    figures = page.run(
        f"[...{view}.querySelectorAll('figure')].map((one) => [one.querySelector('strong').textContent,"
        " one.querySelector('.up').textContent, one.getAttribute('aria-label')])"
    )
    assert [title for title, _, _ in figures] == ["Task loss", "Accuracy", "Reconstruction loss"]

    def write(value):
        return f"{value:.{3 if value < 0.1 else 2}f}"

    for place, names in ((0, ("train_loss", "full_valid_loss")), (2, ("reconstruction_loss",))):
        highest = max(row[name] for row in data for name in names if name in row)
        assert figures[place][1] == write(highest), "each axis ends at its own largest value"
    judged = [row for row in data if "full_valid_loss" in row]
    assert len(judged) == 4, "once an epoch"
    assert figures[0][2].endswith(f"{write(judged[-1]['full_valid_loss'])} at step {judged[-1]['step']}")
    pad = f"{view}.querySelector('.pad')"
    page.run(f"{pad}.focus()")
    page.press("Home", code=36)
    first, second = data[:2]
    said = page.run(f"{pad}.getAttribute('aria-valuetext')")
    assert said.startswith(f"step {first['step']}: training {write(first['train_loss'])}")
    page.press("ArrowRight", code=39)
    assert page.run(f"{pad}.getAttribute('aria-valuenow')") == str(second["step"])
    assert f"training {write(second['train_loss'])}" in page.run(f"{view}.querySelector('figcaption').innerText")
    box = page.run(f"{pad}.scrollIntoView({{ block: 'center' }}); {pad}.getBoundingClientRect().toJSON()")
    middle = box["top"] + box["height"] / 2
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["right"] - 1, y=middle)
    page.wait_for(f"{pad}.getAttribute('aria-valuenow') === '{data[-1]['step']}'")
    assert page.complaints() == []


def test_a_list_is_narrowed_by_typing_and_a_finding_on_it_is_coloured_by_its_severity(page, api, plain_file, validated):
    names = [f"file-{number}.jsonl" for number in range(5)]
    for name in names:
        with plain_file.open("rb") as stream:
            api.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, stream)})
    go(page, "files")
    everything = page.run("document.querySelectorAll('.item').length")
    page.run("document.querySelector('input[type=search]').focus()")
    page.type("FILE-3 laplace")
    shown = page.run("[...document.querySelectorAll('.item:not([hidden]) .name')].map((one) => one.firstChild.data)")
    assert shown == ["file-3.jsonl"]
    assert page.run("document.querySelector('.search [role=status]').textContent") == f"1 of {everything}"
    page.run("document.querySelector('.item:not([hidden])').open = true")
    page.wait_for("document.querySelector('.item[open] .statement')")
    # The noise of this file came from a seed.
    border = page.run("getComputedStyle(document.querySelector('.item[open] .statement')).borderLeftColor")
    red, green, _ = map(int, re.findall(r"\d+", border))
    assert red > 1.5 * green
    go(page, "operation")
    border = page.run("getComputedStyle(document.querySelector('.statement')).borderLeftColor")
    red, green, _ = map(int, re.findall(r"\d+", border))
    assert green > 1.5 * red


def test_an_admin_creates_a_tenant_and_its_key_is_shown_once_and_works_until_revoked(page, service):
    name = f"clinic-{time.time_ns() % 10**9}"
    go(page, "tenants")
    page.run(f"document.querySelector('#section form input').value = '{name}'")
    click(page, "Create the tenant")
    says(page, f"Created the tenant {name}")
    page.run("document.querySelector('details').open = true")
    click(page, "Create a key")
    key = page.wait_for("document.querySelector('.secret code')?.textContent")
    assert page.run("document.activeElement.className") == "secret"
    with open_client(service, headers={"authorization": f"Bearer {key}"}) as theirs:
        assert theirs.get("/v1/usage").json()["tenant"] == name
        click(page, "I have stored it")
        assert key not in page.run("document.documentElement.outerHTML")
        page.run("document.querySelector('details details').open = true")
        click(page, "Revoke")
        click(page, "Revoke the key")
        says(page, "Revoked")
        assert theirs.get("/v1/usage").status_code == 401
    page.run("document.querySelector('.item form input').value = '1000'")
    click(page, "Set quotas")
    says(page, f"The quotas of {name} are set.")
    page.wait_for("document.body.innerText.includes('0 bytes of 1000 bytes')")


def test_a_tenant_sees_no_section_of_the_provider_and_is_signed_out_when_its_key_ends(page, api, service):
    made = api.post("/v1/admin/tenants/local/keys").json()
    page.open(f"{service}/")
    sign_in(page, made["value"])
    assert page.run("[...document.querySelectorAll('.for-admin')].every((one) => one.hidden)")
    api.post(f"/v1/admin/keys/{made['id']}/revoke")
    page.run("document.querySelector('nav a[href=\"#/models\"]').click()")
    page.wait_for("!document.getElementById('sign-in').hidden")
    assert "nvalid API key" in page.text()


def test_by_keyboard_alone_one_signs_in_and_opens_a_model(browser, service, tuned):
    browser.size(1000, 800)
    browser.open(f"{service}/")
    browser.wait_for("document.activeElement.id === 'key'")
    browser.type(KEY)
    browser.enter()
    browser.wait_for("document.activeElement.id === 'content'")
    seen = []
    for _ in range(8):  # backwards, because what comes after the focus is not there before the section is
        browser.tab(back=True)
        seen.append(browser.run("document.activeElement.textContent.trim()"))
    sections = [name.capitalize() for name in SECTIONS]
    assert seen[::-1] == ["Skip to the content", "Sign out", *sections]
    for _ in range(4):
        browser.tab()
    browser.enter()
    browser.wait_for("document.title.startsWith('Models') && document.querySelector('.item[open] form')")
    browser.tab()
    assert browser.run("document.activeElement.tagName") == "SUMMARY"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.tab()
    assert browser.run("document.activeElement.closest('form') === document.querySelector('.item[open] form')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_section_fits_a_phone_and_names_every_control(page, tuned, scheme):
    page.size(360, 740, phone=True)
    page.prefer(scheme)
    for name in SECTIONS:
        go(page, name)
        page.run("for (const one of document.querySelectorAll('details')) one.open = true")
        page.wait_for("!document.body.innerText.match(/Reading|Looking it up/)")
        assert page.run("document.documentElement.scrollWidth") == 360, name
        assert page.run(UNNAMED) == [], name
        small = (
            "[...document.querySelectorAll('button')].filter((one) => one.offsetParent && one.offsetHeight < 40).length"
        )
        assert page.run(small) == 0, name
    brightness = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (brightness > 200) == (scheme == "light")


def test_without_keys_the_page_is_open_to_this_machine_and_shows_first_steps_to_copy(browser, backbones, tmp_path):
    with running_service(tmp_path, backbones=backbones) as url:
        browser.open(f"{url}/")
        browser.wait_for("document.body.innerText.includes('Tenant local, admin, without a key')")
        browser.wait_for("document.querySelectorAll('.steps > li').length === 4")
        commands = browser.run("[...document.querySelectorAll('.command code')].map((one) => one.textContent)")
        assert f"rapt tune reviews.rapt.jsonl --service {url}" in commands
        browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        browser.run("document.querySelector('.copy').click()")
        browser.wait_for("document.querySelector('.copy').textContent === 'Copied'")
        assert browser.run("navigator.clipboard.readText()") == commands[0]
        go(browser, "tenants")  # which asks by GET; creating asks by POST, with an origin
        browser.run("document.querySelector('#section form input').value = 'clinic'")
        click(browser, "Create the tenant")
        says(browser, "Created the tenant clinic")
