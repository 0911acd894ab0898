"""Opens the pages of `gyrus report` in headless Chromium and checks what only a browser can say; see README.md."""

import argparse
import base64
import json
import subprocess
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

RUNS = """
phantom --out heads --subjects 24 --spacing 6
prepare heads --out cache --grid 32 32 32 --spacing 6
pretrain cache --set model.patch=8 --set train.batch=4 --set train.warmup_epochs=1 --set train.epochs=6 --out mae
finetune cache --from mae --folds 2 --set train.batch=4 --set train.warmup_epochs=1 --set train.epochs=2 --out age
qc heads --out quality
report mae --count 2
report age
report quality
study study.toml --out study
""".strip().splitlines()

STUDY = """
title = "A study of nothing much"
phantom = [{ name = "heads", subjects = 12, seed = 1, spacing = 8 }]
pretraining.dataset = "heads"
cohort.dataset = "heads"
distortion = { tiers = [4], seed = 3 }
design = { seeds = 2, folds = 2, age_bins = 1 }
prepare = { grid = [16, 16, 16] }
pretrain = { model = { patch = 8 }, train = { epochs = 2, batch = 4, warmup_epochs = 0 } }
finetune = { train = { epochs = 1, batch = 4, warmup_epochs = 0 } }
"""


def browser(webgl):
    options = webdriver.ChromeOptions()
    drawing = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"] if webgl else ["--disable-3d-apis"]
    for argument in ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", *drawing]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path="/usr/bin/chromedriver")
    options.binary_location = "/usr/bin/chromium"
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(120)
    return driver


def size(driver, width, height, mobile=False):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait(until, what, seconds=90):
    end = time.time() + seconds
    while not until():
        assert time.time() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def complaints(driver):
    """What the console said, and what was asked of anybody but the page itself."""
    said = [e["message"] for e in driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
    # The software renderer says that reading pixels is slow: this test reads them.
    said = [s for s in said if "GPU stall due to ReadPixels" not in s]
    asked = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            request = message["params"]
            url = request["request"]["url"]
            if not url.startswith(("data:", "blob:")) and request.get("type") != "Document":
                asked.append(url[:200])
    return said + asked


def pixels(driver, number):
    """A canvas as it is drawn: how many colours it has, and a sum to tell one picture from another."""
    return driver.execute_async_script(
        """
        const [number, done] = arguments, canvas = document.querySelectorAll('.viewer canvas')[number]
        requestAnimationFrame(() => {
          const copy = document.createElement('canvas')
          copy.width = canvas.width; copy.height = canvas.height
          const gl = canvas.getContext('webgl2')
          const bytes = new Uint8Array(4 * canvas.width * canvas.height)
          // Drawn again here: a buffer that was shown is empty.
          canvas.closest('.viewer').viewers[number].drawScene()
          gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, bytes)
          const colours = new Set(), sum = bytes.reduce((a, b, i) => (a * 31 + b * (i % 7 + 1)) % 1000003, 0)
          for (let i = 0; i < bytes.length; i += 4) colours.add(bytes[i] << 16 | bytes[i + 1] << 8 | bytes[i + 2])
          done([colours.size, sum, canvas.width, canvas.height])
        })
        """,
        number,
    )


def check_viewer(driver):
    figure = driver.find_element(By.CSS_SELECTOR, ".viewer")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    wait(lambda: figure.get_dom_attribute("data-shown") == "0", "the viewer to draw")
    assert "still" not in figure.get_dom_attribute("class"), figure.text
    before = [pixels(driver, i) for i in range(3)]
    for colours, _, width, height in before:
        assert colours > 50 and width > 100 and height > 50, f"a canvas is blank: {before}"
    assert len({sum for _, sum, _, _ in before}) == 3, f"all canvases show the same: {before}"

    canvases = figure.find_elements(By.TAG_NAME, "canvas")
    where = figure.find_element(By.TAG_NAME, "output").text
    driver.execute_script("arguments[0].focus()", canvases[1])
    canvases[1].send_keys(Keys.ARROW_LEFT * 3 + Keys.PAGE_UP * 2)
    assert figure.find_element(By.TAG_NAME, "output").text != where, "keys do not move the crosshair"
    after = [pixels(driver, i) for i in range(3)]
    assert all(a[1] != b[1] for a, b in zip(before, after)), "the crosshairs do not move together"

    options = figure.find_elements(By.CSS_SELECTOR, ".scan option")
    if len(options) > 1:
        options[1].click()
        wait(lambda: figure.get_dom_attribute("data-shown") == "1", "the second scan")
        assert pixels(driver, 0)[1] != after[0][1], "another scan shows the same"
    figure.find_elements(By.CSS_SELECTOR, ".plane option")[1].click()
    assert pixels(driver, 0)[0] > 20, "a single plane is blank"


SORT = """
  return [...document.querySelectorAll('table.sortable')].map(table => {
    const headings = [...table.querySelectorAll('th[aria-sort]')]
    return headings.map(heading => [1, 2].map(() => {
      heading.querySelector('button').click()
      const cells = [...table.tBodies[0].rows].map(row => row.cells[heading.cellIndex])
      return [heading.dataset.sort, heading.getAttribute('aria-sort'), cells.map(c => c.dataset.v ?? c.textContent)]
    }))
  })
"""


def check_tables(driver):
    for clicks in (clicks for table in driver.execute_script(SORT) for clicks in table):
        assert {direction for _, direction, _ in clicks} == {"ascending", "descending"}, clicks
        for kind, direction, values in clicks:
            if kind == "number":
                known = [float(v) for v in values if v not in ("NaN", "n/a", "")]
                assert known == sorted(known, reverse=direction == "descending"), values
                last = values[len(known) :]
                assert all(v in ("NaN", "n/a", "") for v in last), values
    # By keyboard.
    for button in driver.find_elements(By.CSS_SELECTOR, "table.sortable th button"):
        if button.is_displayed():
            direction = "return arguments[0].parentNode.getAttribute('aria-sort')"
            before = driver.execute_script(direction, button)
            button.send_keys(Keys.ENTER)
            assert before != driver.execute_script(direction, button), "Enter does not sort"
            break
    for field in driver.find_elements(By.CSS_SELECTOR, ".filter input"):
        if field.is_displayed():
            field.send_keys("no such row")
            said = field.find_element(By.XPATH, "..").text
            assert " 0 of " in said, f"no filter: {said}"
            break


def check_fit(driver, what):
    wide = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], f"the page is wider than the {what}: {wide}"


def shoot(driver, folder, name):
    """The whole page, in pieces that can be looked at."""
    driver.execute_script("window.scrollTo(0, 0)")
    width, height = driver.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    for i, top in enumerate(range(0, min(height, 16000), 2000)):
        clip = {"x": 0, "y": top, "width": width, "height": min(2000, height - top), "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        (folder / f"{name}-{i}.png").write_bytes(base64.b64decode(shot["data"]))


def check(driver, page, shots):
    size(driver, 1280, 900)
    driver.get(page.as_uri())
    wait(lambda: driver.execute_script("return document.readyState") == "complete", "the page")
    volumes = bool(driver.find_elements(By.CSS_SELECTOR, ".viewer"))
    if volumes:
        check_viewer(driver)
    check_fit(driver, "desk")
    check_tables(driver)
    name = f"{page.parent.name}-{page.stem}"
    if shots:
        driver.refresh()
        if volumes:
            figure = driver.find_element(By.CSS_SELECTOR, ".viewer")
            driver.execute_script("arguments[0].scrollIntoView()", figure)
            wait(lambda: figure.get_dom_attribute("data-shown"), "the viewer to draw")
        shoot(driver, shots, f"{name}-desk")
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        shoot(driver, shots, f"{name}-dark")
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        pdf = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False, "preferCSSPageSize": True})
        (shots / f"{name}.pdf").write_bytes(base64.b64decode(pdf["data"]))
    size(driver, 390, 844, mobile=True)
    driver.refresh()
    time.sleep(0.3)
    check_fit(driver, "phone")
    if volumes:
        figure = driver.find_element(By.CSS_SELECTOR, ".viewer")
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
        wait(lambda: figure.get_dom_attribute("data-shown"), "the viewer to draw on a phone")
        assert pixels(driver, 2)[0] > 50, "a canvas is blank on a phone"
        check_fit(driver, "phone")
    if shots:
        shoot(driver, shots, f"{name}-phone")
    found = complaints(driver)
    assert not found, f"{page}: {found}"
    print(f"{page}: fine")


def check_without_webgl(page):
    driver = browser(webgl=False)
    try:
        size(driver, 1280, 900)
        driver.get(page.as_uri())
        figure = driver.find_element(By.CSS_SELECTOR, ".viewer")
        wait(lambda: "still" in figure.get_dom_attribute("class"), "the slices")
        assert "no WebGL 2" in figure.text, figure.text
        picture = figure.find_element(By.CSS_SELECTOR, ".slices img")
        assert picture.is_displayed() and driver.execute_script("return arguments[0].naturalWidth", picture) > 500
    finally:
        driver.quit()
    print(f"{page}: fine without WebGL")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gyrus", type=Path, help="the program")
    parser.add_argument("pages", type=Path, nargs="*", help="pages to check beside those that are made")
    parser.add_argument("--shots", type=Path, help="keep pictures here")
    parser.add_argument("--only", action="store_true", help="make no pages")
    arguments = parser.parse_args()
    if arguments.shots:
        arguments.shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pages = [page.resolve() for page in arguments.pages]
        if not arguments.only:
            (Path(folder) / "study.toml").write_text(STUDY)
            for line in RUNS:
                done = subprocess.run([arguments.gyrus.resolve(), *line.split()], cwd=folder, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}\n{done.stderr}"
            pages += [Path(folder) / run / "report.html" for run in ("mae", "age", "quality", "study")]
        driver = browser(webgl=True)
        try:
            for page in pages:
                check(driver, page, arguments.shots)
        finally:
            driver.quit()
        for page in pages:
            if '<figure class="viewer"' in page.read_text():
                check_without_webgl(page)
                break


if __name__ == "__main__":
    main()
