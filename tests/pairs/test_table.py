"""Tables of pairs as spreadsheets write them."""

import pytest
from builders.pairs import blobs, write_pairs

from wsi_stain.errors import TrainingError
from wsi_stain.pairs.pair import find_pairs

ROWS = [("he0.png", "ihc0.png", "s0", "train", "128"), ("he1.png", "ihc1.png", "s1", "val", "")]


def written(names: str, delimiter: str) -> str:
    return "\n".join([names, *(delimiter.join(row) for row in ROWS), delimiter * 4, ""])


@pytest.mark.parametrize(
    "text",
    [
        written("he;ihc;slide_id;split;x", ";"),
        written("he\tihc\tslide_id\tsplit\tx", "\t"),
        written("\ufeffHE, IHC, Slide ID, Split, X", ","),
        written("he,ihc,slide_id,split,x,,", ","),
        written("sep=;\nhe;ihc;slide_id;split;x;comment", ";"),
    ],
    ids=["semicolon", "tab", "capitals", "empty columns", "Excel"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_table_is_read_in_any_spelling(tmp_path, text, encoding):
    folder = write_pairs(tmp_path, [(tile, tile) for tile in blobs(2, 64)])
    (folder / "pairs.csv").write_bytes(text.encode(encoding))
    pairs = find_pairs(folder)
    assert [(p.he.name, p.ihc.name, p.slide_id, p.split, p.x) for p in pairs] == [
        (*r[:4], 128 if r[4] else None) for r in ROWS
    ]


def test_the_line_of_a_missing_file_is_named(tmp_path):
    folder = write_pairs(tmp_path, [(tile, tile) for tile in blobs(2, 64)])
    (folder / "pairs.csv").write_text(
        "he;ihc;slide_id;split\n\nhe0.png;ihc0.png;a;train\n;;;\nhe1.png;gone.png;b;val\n"
    )
    with pytest.raises(TrainingError, match=r"line 5: no such file: .*gone\.png"):
        find_pairs(folder)
