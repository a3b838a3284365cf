"""A few rows of each of MMEB's 20 training sets and 36 tasks, in the shape in which each is published: instructions word for word, where
image marks and line ends stand, which sides have an image, how long the lists are.  Questions, captions and pictures are made up.

Training rows are (qry, qry_image_path, pos_text, pos_image_path), evaluation rows (qry_text, qry_img_path, tgt_text, tgt_img_path).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
from published import MARK, png, task, zipped

TrainRow = tuple[str, str, str, str]
EvalRow = tuple[str, str, list[str], list[str]]

CLASSIFY = MARK + "Represent the given image for classification\n"
OBJECT = MARK + "Identify the object shown in the image\n"
SCENE = MARK + "Identify the scene shown in the image\n"
COUNTRY = MARK + "Identify the country depicted in the image\n"
NEWS_DOMAIN = MARK + "Represent the given news image with the following caption for domain classification: {}\n"
HATE = MARK + "Represent the given image for binary classification to determine whether it constitutes hateful speech or not\n"
ASK = MARK + "Represent the given image with the following question: {}\n"
DIALOGUE = "Represent the given dialogue about an image, which is used for image retrieval: {}\n\n"
CHANGE = MARK + "Given an image, find a similar everyday image with the described changes: {}\n"
NEWS_IMAGE = "Retrieve an image of this news caption. {}\n"
NEWS_CAPTION = MARK + "Find a caption for the news in the given photo.\n"
FIND_IMAGE = "Find me an everyday image that matches the given caption: {}\n"
FIND_CAPTION = MARK + "Find an image caption describing the given everyday image.\n"
SIMILAR = MARK + "Find a day-to-day image that looks similar to the provided image.\n"
WIKI_QUESTION = MARK + "Find a Wikipedia image that answers this question: {}\n"
WIKI_TARGET = MARK + "Represent the given Wikipedia image with related text information: {}\n"
NEWS_QUERY = MARK + "Find a news image that matches the provided caption: {}\n"
NEWS_TARGET = MARK + "Represent the given image with related text information: {}\n"
FASHION = MARK + "Find an image to match the fashion image and style note: {}\n"
DOCUMENT = "Find the document image that can answer the given query: {}\n"
EVIDENCE = MARK + "Retrieve a Wikipedia image-description pair that provides evidence for the question of this image: {}\n"
ISOLATE = MARK + 'Select the portion of the image that isolates the object labeled as "{}"\n'
CROP = MARK + 'Crop the image to to isolate the object labeled as "{}"\n'
FOLLOW = MARK + 'Select the portion of the image that follows the language expressions. "{}"\n'
MATCHING = MARK + 'Select the portion of the image that follows the language expressions: "{}"\n'
POINT = MARK + 'Select the portion of the image that answers the question "{}"\n'
SHOWN = MARK + "Represent the given image.\n"
DIALOGUE_SHOWN = MARK + "Represent the given image\n"
CROPPED = MARK + "Represent the given cropped image of the object"

WITHOUT_IMAGE = ("WebQA", "EDIS")
"""Sets whose every query has a mark and no image."""

TALK = "Q:is it day\nA:yes\nQ:how many boats\nA:{}, all of them small"


def _train() -> dict[str, list[TrainRow]]:
    def at(name: str, file: str) -> str:
        return f"images/{name}/Train/{file}"

    def labelled(name: str, query: str, labels: list[str]) -> list[TrainRow]:
        return [(query, at(name, f"image_{number}.jpg"), label, "") for number, label in enumerate(labels)]

    def asked(name: str, answers: dict[str, str]) -> list[TrainRow]:
        rows = enumerate(answers.items())
        return [(ASK.format(question), at(name, f"{name}_image_{number}.jpg"), answer, "") for number, (question, answer) in rows]

    return {
        "ImageNet_1K": labelled("ImageNet_1K", CLASSIFY, ["harbour seal, sea dog", "lighthouse"]),
        "N24News": [
            (NEWS_DOMAIN.format('The cast of "Ebb" at rehearsal.'), at("N24News", "N24News_image_1.jpg"), "Theater", ""),
            (NEWS_DOMAIN.format("A flat in Lyon,  with two rooms."), at("N24News", "N24News_image_2.jpg"), "Real Estate", ""),
        ],
        "HatefulMemes": labelled("HatefulMemes", HATE, ["No", "Yes"]),
        "VOC2007": labelled("VOC2007", OBJECT, ["boat", "sheep"]),
        "SUN397": labelled("SUN397", SCENE, ["field wild", "theater indoor seats"]),
        # rows with an empty side are published, too
        "OK-VQA": [*asked("OK-VQA", {"What sport is it?": "rowing"}), ("", "", "rowing", "")],
        "A-OKVQA": [
            *asked("A-OKVQA", {"What may one not do here?": "park"}),
            (ASK.format("Why?"), at("A-OKVQA", "A-OKVQA_image_0.jpg"), "", ""),
        ],
        "DocVQA": asked("DocVQA", {"what is the date of the letter ?": "3 May"}),
        "InfographicsVQA": asked("InfographicsVQA", {"What share walks to work?": "12%"}),
        "ChartQA": asked("ChartQA", {"What is the value in 2015?": "70.39"}),
        "Visual7W": asked("Visual7W", {"Who is there?": "A rower."}),
        "VisDial": [(DIALOGUE.format(TALK.format(n)), "", DIALOGUE_SHOWN, at("VisDial", f"VisDial_image_{n}.jpg")) for n in (2, 3)],
        "CIRR": [
            (CHANGE.format("Make the boats red."), at("CIRR", "train-1-0-img0.jpg"), SHOWN, at("CIRR", "train-2-0-img1.jpg")),
            (CHANGE.format("Add a sail."), at("CIRR", "train-2-0-img1.jpg"), SHOWN, at("CIRR", "train-1-0-img0.jpg")),
        ],
        "VisualNews_t2i": [(NEWS_IMAGE.format("A storm at Zumaia."), "", SHOWN, at("VisualNews_t2i", "guardian_images_0162_142.jpg"))],
        "VisualNews_i2t": [(NEWS_CAPTION, at("VisualNews_i2t", "guardian_images_0851_409.jpg"), "A storm at Zumaia.", "")],
        "MSCOCO_t2i": [(FIND_IMAGE.format("Two boats on a beach."), "", SHOWN, at("MSCOCO_t2i", "COCO_val2014_000000000001.jpg"))],
        "MSCOCO_i2t": [(FIND_CAPTION, at("MSCOCO_i2t", "COCO_train2014_000000000002.jpg"), "Two boats on a beach.", "")],
        "NIGHTS": [(SIMILAR, at("NIGHTS", "ref_058_138.jpg"), SHOWN, at("NIGHTS", "distort_058_138_0.jpg"))],
        "WebQA": [
            (WIKI_QUESTION.format("Is the dome green?"), "", WIKI_TARGET.format("Town hall, 2010."), at("WebQA", "30356794.jpg")),
            (
                WIKI_QUESTION.format("Has it two towers?"),
                "",
                WIKI_TARGET.format("Łódź cathedral  seen from afar."),
                at("WebQA", "30275013.jpg"),
            ),
        ],
        "MSCOCO": [  # a crop may be a few pixels wide, and file names have blanks
            (ISOLATE.format("traffic light"), at("MSCOCO", "000000046571.jpg"), CROPPED, at("MSCOCO", "46571_object_traffic light.jpg")),
            (ISOLATE.format("boat"), at("MSCOCO", "000000170232.jpg"), CROPPED, at("MSCOCO", "170232_object_boat.jpg")),
        ],
    }


def _eval() -> dict[str, list[EvalRow]]:
    def labels(name: str, query: str, count: int) -> list[EvalRow]:
        words = [f"label {number}" for number in range(count)]
        rows = []
        for right in range(2):
            candidates = [words[right], *(word for word in words if word != words[right])]
            rows.append((query, f"{name}/{name}_{right}.jpg", candidates, [""] * count))
        return rows

    def answers(name: str, question: str, count: int = 6) -> list[EvalRow]:
        texts = [f"answer {number}" for number in range(count)]
        return [(ASK.format(question), f"{name}/{name}_image_0.jpg", texts, [""] * count)]

    def pictures(name: str, query: str, target: str, image: str = "") -> list[EvalRow]:
        paths = [f"{name}/target_{number}.jpg" for number in range(4)]
        return [(query, image, [target.format(number) for number in range(4)], paths)]

    def own(name: str) -> str:
        return f"{name}/query.jpg"

    captions = [f"Caption number {number}." for number in range(5)]
    return {
        "ImageNet-1K": labels("ImageNet-1K", CLASSIFY, 8),
        "N24News": labels("N24News", NEWS_DOMAIN.format("The rehearsal."), 24),
        "HatefulMemes": labels("HatefulMemes", HATE, 2),
        "VOC2007": labels("VOC2007", OBJECT, 20),
        "SUN397": labels("SUN397", SCENE, 9),
        "Place365": labels("Place365", SCENE, 9),
        "ImageNet-A": labels("ImageNet-A", CLASSIFY, 8),
        "ImageNet-R": labels("ImageNet-R", CLASSIFY, 8),
        "ObjectNet": labels("ObjectNet", OBJECT, 8),
        "Country211": labels("Country211", COUNTRY, 9),
        "OK-VQA": answers("OK-VQA", "What sport is it?"),
        "A-OKVQA": answers("A-OKVQA", "What may one not do here?"),
        "DocVQA": answers("DocVQA", "what is the date ?"),
        "InfographicsVQA": answers("InfographicsVQA", "What share walks?"),
        "ChartQA": answers("ChartQA", "What is the value?"),
        "Visual7W": answers("Visual7W", "Who is there?"),
        "ScienceQA": answers("ScienceQA", "Which is colder?", 3),
        "VizWiz": answers("VizWiz", "What does the label say? "),  # a blank before the line end
        "GQA": answers("GQA", "Is the boat red?"),
        "TextVQA": answers("TextVQA", "what does the sign say?"),
        "VisDial": pictures("VisDial", DIALOGUE.format(TALK.format(2)), DIALOGUE_SHOWN),
        "CIRR": pictures("CIRR", CHANGE.format("Add a sail."), SHOWN, own("CIRR")),
        "VisualNews_t2i": pictures("VisualNews_t2i", NEWS_IMAGE.format("A storm."), SHOWN),
        "VisualNews_i2t": [(NEWS_CAPTION, own("VisualNews_i2t"), captions, [""] * 5)],
        "MSCOCO_t2i": pictures("MSCOCO_t2i", FIND_IMAGE.format("Two boats."), SHOWN),
        "MSCOCO_i2t": [(FIND_CAPTION, own("MSCOCO_i2t"), captions, [""] * 5)],
        "NIGHTS": pictures("NIGHTS", SIMILAR, SHOWN, own("NIGHTS")),
        "WebQA": pictures("WebQA", WIKI_QUESTION.format("Is the dome green?"), WIKI_TARGET),
        "FashionIQ": pictures("FashionIQ", FASHION.format("is longer and has sleeves."), SHOWN, own("FashionIQ")),
        "Wiki-SS-NQ": pictures("Wiki-SS-NQ", DOCUMENT.format("who built the pier"), SHOWN),
        "OVEN": pictures("OVEN", EVIDENCE.format("what is the height of this tower?"), WIKI_TARGET, own("OVEN")),
        "EDIS": pictures("EDIS", NEWS_QUERY.format("The mayor opens the pier."), NEWS_TARGET),
        "MSCOCO": pictures("MSCOCO", CROP.format("dog"), CROPPED, own("MSCOCO")),
        "RefCOCO": pictures("RefCOCO", FOLLOW.format("boat on the left"), CROPPED, own("RefCOCO")),
        "RefCOCO-Matching": pictures("RefCOCO-Matching", MATCHING.format("left boat"), MATCHING, own("RefCOCO-Matching")),
        "Visual7W-Pointing": pictures("Visual7W-Pointing", POINT.format("Which box frames the sail?"), CROPPED, own("Visual7W-Pointing")),
    }


TRAIN, EVAL = _train(), _eval()


def picture(path: str) -> bytes:
    """The bytes of the picture that a path names; a cropped one may be 4 x 18 pixels, the others are 28 x 28 or 56 x 28."""
    seed = sum(map(ord, path))
    if "_object_traffic" in path:
        return png(seed, (4, 18))
    return png(seed, (28, 28) if seed % 2 else (56, 28))


def write_train(root: Path, names: list[str] | None = None) -> None:
    """`root`/train/<set> with both files of instructions, the older file that a whole download has beside them, and images.zip."""
    for name in names or list(TRAIN):
        rows = TRAIN[name]
        folder = root / "train" / name
        folder.mkdir(parents=True)
        frame = pl.DataFrame(rows, schema=["qry", "qry_image_path", "pos_text", "pos_image_path"], orient="row")
        frame = frame.with_columns(neg_text=pl.lit(""), neg_image_path=pl.lit(""))  # strings, and not read
        for stem in ("original", "diverse_instruction", "train"):
            frame.write_parquet(folder / f"{stem}-00000-of-00001.parquet")
        paths = {path for _, asked, _, answered in rows for path in (asked, answered) if path}
        zipped(folder / "images.zip", {path: picture(path) for path in sorted(paths)})


def write_eval(root: Path, names: list[str] | None = None) -> None:
    """`root`/eval/<task>, and the one images.zip of all tasks."""
    members: dict[str, bytes] = {}
    for name in names or list(EVAL):
        task(root, name, EVAL[name])
        for _, path, _, paths in EVAL[name]:
            members |= {one: picture(one) for one in (path, *paths) if one}
    zipped(root / "eval" / "images.zip", members)
