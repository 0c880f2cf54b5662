"""The page for people, in a real browser: by mouse and by keyboard, and nothing from anywhere but the server."""

import shutil

import pytest
from pictures import encoded, picture
from playwright.sync_api import expect, sync_playwright


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page()
    page.problems, page.asked = [], []
    page.on("pageerror", lambda error: page.problems.append(error))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(f"{server.url}/page")
    expect(page.locator("#model option").first).to_have_text("mum")
    page.select_option("#size", "112")
    yield page
    assert page.problems == []
    assert [url for url in page.asked if not url.startswith((server.url, "blob:", "data:"))] == []
    page.close()


def photo(name, data):
    return {"name": name, "mimeType": "image/png", "buffer": data}


PHOTO = encoded(picture(112, 168), "PNG")


def test_the_same_photo_twice_matches_itself(page):
    page.set_input_files("#files", [photo("a.png", PHOTO), photo("b.png", PHOTO)])
    expect(page.locator("figcaption")).to_have_text(["a.png: 14 x 21 patches", "b.png: 14 x 21 patches"])
    expect(page.locator("#count")).to_have_text("294 patches choose each other; the 60 most alike are drawn.")
    canvas = page.locator("#views canvas").first
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 2.5 / 21, "y": box["height"] * 4.5 / 14})
    expect(page.locator("#status")).to_have_text(
        "a.png row 5, column 3 is most like b.png row 5, column 3 (cosine 1.00)."
    )


def test_by_keyboard_alone(page):
    page.locator("#files").focus()
    page.set_input_files("#files", [photo("a.png", PHOTO), photo("b.png", PHOTO)])
    expect(page.locator("#views canvas")).to_have_count(2)
    focused = ""
    for _ in range(12):
        page.keyboard.press("Tab")
        focused = page.locator(":focus").get_attribute("aria-label") or ""
        if "Features of" in focused:
            break
    assert focused == "Features of a.png; arrow keys choose a patch"
    page.keyboard.press("ArrowRight")  # from the middle, row 8, column 11
    page.keyboard.press("ArrowUp")
    expect(page.locator("#status")).to_contain_text("a.png row 7, column 12 is most like b.png row 7, column 12")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("No patch chosen.")


def test_a_broken_photo_is_named_and_the_others_are_shown(page):
    page.set_input_files("#files", [photo("whole.png", PHOTO), photo("cut.png", PHOTO[:900])])
    expect(page.locator("#status")).to_contain_text("cut.png: the request's body: cannot be decoded, cut or damaged")
    expect(page.locator("#views canvas")).to_have_count(1)
    expect(page.locator("#matching")).to_be_hidden()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#status")).to_have_text("No photos yet.")
    expect(page.locator("#features")).to_be_hidden()


def test_drawn_colours_differ_where_features_do(page):
    page.set_input_files("#files", [photo("a.png", PHOTO)])
    expect(page.locator("#views canvas")).to_have_count(1)
    page.locator("#opacity").fill("100")
    colours = page.locator("#views canvas").evaluate(
        "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"
    )
    assert colours > 100  # of 294 patches


def columns_of(page, row):
    """Sources of the images in a row of the table of reconstructions, once it is there."""
    images = page.locator(f"#scene tr:has(th:text-is('{row}')) img")
    expect(images).to_have_count(2)
    expect(page.locator("#scene.stale")).to_have_count(0)
    return images.evaluate_all("images => images.map(image => image.src)")


def test_reconstructions(page):
    """What was hidden changes with mask and share; what was dropped stays; all of it by keyboard."""
    page.set_input_files("#files", [photo("a.png", PHOTO), photo("b.png", encoded(picture(112, 168, 1), "PNG"))])
    expect(page.locator("#progress")).to_have_text("73 of 294 patches of each photo were seen.")
    assert page.locator("#scene th[scope=col]").all_inner_texts() == ["a.png", "b.png"]
    shown = {row: columns_of(page, row) for row in ("Photo", "Seen", "Reconstruction")}
    assert len({source for row in shown.values() for source in row}) == 6
    natural = page.locator("#scene img").evaluate_all("images => images.map(i => [i.naturalWidth, i.naturalHeight])")
    assert natural == [[168, 112]] * 6

    page.get_by_role("button", name="Another mask").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#seed")).to_have_value("1")
    expect(page.locator("#scene img").nth(2)).not_to_have_attribute("src", shown["Seen"][0])
    assert columns_of(page, "Photo") == shown["Photo"]
    page.locator("#ratio").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#share")).to_have_text("70 %")
    expect(page.locator("#progress")).to_have_text("88 of 294 patches of each photo were seen.")

    page.locator("#seed").fill("-3")
    page.keyboard.press("Tab")
    expect(page.locator("#progress")).to_contain_text("query.seed")
    expect(page.locator("#scene img")).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#reconstruction")).to_be_hidden()
