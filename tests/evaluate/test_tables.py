"""Tables as spreadsheets write them: separators, headers, empty cells, numbers, .xlsx."""

import sys
import zipfile

import pytest

from rome_fast import EditRequest, load_records
from rome_fast.errors import InvalidArgumentError, MissingExtraError, RecordError

REQUESTS = [
    EditRequest("{} plays the", "Ray Charles", "violin"),
    EditRequest("{} was born in", "Ada Lovelace", "1914"),
]
CELLS = [
    ["Prompt", " Subject ", "Target New", "Paraphrase Prompts", "chat"],
    ["{} plays the", "Ray Charles", "violin", '["Ray Charles, the", "He; plays"]', ""],
    ["", "", "", "", ""],
    ["{} was born in", "Ada Lovelace", 1914, "", ""],
    ["", "", "", "", ""],
]


def text_of(cells, separator):
    def quoted(cell):
        special = any(mark in str(cell) for mark in (separator, '"'))
        return '"{}"'.format(str(cell).replace('"', '""')) if special else str(cell)

    return "\r\n".join(separator.join(map(quoted, row)) for row in cells) + "\r\n"


def xlsx(path, cells):
    """The least that is a workbook."""
    rows = []
    for number, row in enumerate(cells, 1):
        made = [
            f'<c r="{chr(65 + column)}{number}"><v>{cell}</v></c>'
            if isinstance(cell, int | float)
            else f'<c r="{chr(65 + column)}{number}" t="inlineStr"><is><t xml:space="preserve">'
            f"{cell.replace('&', '&amp;')}</t></is></c>"
            for column, cell in enumerate(row)
            if cell != ""
        ]
        rows.append(f'<row r="{number}">{"".join(made)}</row>')
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    sheet_type = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.'
        f'relationships+xml"/><Override PartName="/xl/workbook.xml" ContentType="{sheet_type}.'
        f'sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" ContentType="'
        f'{sheet_type}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet '
        'name="facts" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="r1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/>'
        "</Relationships>",
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{"".join(rows)}'
        "</sheetData></worksheet>",
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, part in parts.items():
            file.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{part}')
    return path


def check(records):
    assert [record.request for record in records] == REQUESTS
    assert [record.paraphrases for record in records] == [("Ray Charles, the", "He; plays"), ()]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("told", [False, True])
def test_any_separator_headers_and_empty_cells(tmp_path, separator, told):
    path = tmp_path / ("facts.tsv" if separator == "\t" else "facts.csv")
    before = f"sep={separator}\r\n" if told else ""
    path.write_bytes(("\ufeff" + before + text_of(CELLS, separator)).encode())
    check(load_records(path))
    path.write_bytes((before + text_of([*CELLS, ["{} is", "Ada"]], separator)).encode())
    line = 7 if told else 6
    with pytest.raises(RecordError, match=rf"\(line {line}\): target_new missing"):
        load_records(path)


def test_excels_own_file(tmp_path):
    check(load_records(xlsx(tmp_path / "facts.xlsx", CELLS)))
    with pytest.raises(RecordError, match=r"record 2 \(line 6\): target_new missing"):
        load_records(xlsx(tmp_path / "facts.xlsx", [*CELLS, ["{} is", "Ada"]]))


def test_a_file_that_is_no_workbook_is_refused(tmp_path):
    path = tmp_path / "facts.xlsx"
    path.write_text("prompt,subject,target\n")
    with pytest.raises(InvalidArgumentError, match=r"facts\.xlsx cannot be read: "):
        load_records(path)


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rome-fast\[tables\]', or save the"):
        load_records(xlsx(tmp_path / "facts.xlsx", CELLS))


def test_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("prompt,Prompt,subject,target\n{} is,{} is,Ada,x\n")
    with pytest.raises(InvalidArgumentError, match="several columns are named prompt"):
        load_records(path)


def test_more_cells_than_columns_unless_they_are_empty(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("prompt,subject,target\n{} is,Ada,here,,\n{} is,Eve,here,x\n")
    assert len(load_records(path, limit=1)) == 1
    with pytest.raises(RecordError, match=r"\(line 3\): it has more cells than there are columns"):
        load_records(path)


def test_numbers_and_nan_of_a_data_frame():
    row = {"prompt": "{} was born in", "subject": "Ada Lovelace", "target_true": float("nan")}
    for target in (1914, 1914.0):
        [record] = load_records([{**row, "target_new": target}])
        assert record.request == REQUESTS[1] and record.target_true is None
    with pytest.raises(RecordError, match="target_new missing"):
        load_records([{**row, "target_new": float("nan")}])
