"""The script for QuPath, run by Groovy with stand-ins for QuPath's classes."""

import shutil
import subprocess
from pathlib import Path

import pytest
from builders.cohorts import request_of, write_slides

from wsi_stain.cohort.check import checked
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.qupath import literal, write_script
from wsi_stain.cohort.request import Row
from wsi_stain.errors import OutputError
from wsi_stain.files import record

STANDINS = {
    "qupath/lib/images/ImageData.groovy": """package qupath.lib.images
class ImageData {
    enum ImageType { BRIGHTFIELD_H_E, BRIGHTFIELD_H_DAB, BRIGHTFIELD_OTHER, FLUORESCENCE, OTHER, UNSET }
    String uri; ImageType type
    void setImageType(ImageType t) { type = t }
    Object getServer() { new Server() }
    static class Server { Object getDefaultThumbnail(int z, int t) { 'thumb' }; void close() {} }
}""",
    "qupath/lib/images/servers/ImageServerProvider.groovy": """package qupath.lib.images.servers
class ImageServerProvider {
    static Object getPreferredUriImageSupport(Class c, String uri, String... args) { new Support(uri: uri) }
    static class Support { String uri; List getBuilders() { [uri] } }
}""",
    "qupath/lib/projects/Entry.groovy": """package qupath.lib.projects
import qupath.lib.images.ImageData
class Entry {
    String uri, name, description = ''; Object thumbnail; ImageData saved
    ImageData readImageData() { new ImageData(uri: uri) }
    void saveImageData(ImageData d) { saved = d }
    void setImageName(String n) { name = n }
    String getImageName() { name }
    void setDescription(String d) { description = d }
    void setThumbnail(Object t) { thumbnail = t }
}""",
    "qupath/lib/projects/Project.groovy": """package qupath.lib.projects
class Project {
    File file; List<Entry> entries = []
    Entry addImage(Object builder) { def e = new Entry(uri: builder); entries << e; e }
    List getImageList() { entries }
    void syncChanges() {
        def lines = entries.collect { [it.uri, it.name, it.saved?.type, it.thumbnail, it.description].join('|') }
        file.text = lines.join('\\n')
    }
}""",
    "qupath/lib/projects/Projects.groovy": """package qupath.lib.projects
class Projects {
    static Project createProject(File folder, Class c) { new Project(file: new File(folder, 'project.qpproj')) }
}""",
    "qupath/lib/projects/ProjectIO.groovy": """package qupath.lib.projects
class ProjectIO {
    static Project loadProject(File file, Class c) {
        def p = new Project(file: file)
        file.eachLine { l -> def f = l.split('[|]'); p.entries << new Entry(uri: f[0], name: f[1], description: 'old') }
        p
    }
}""",
}


def make(tmp_path: Path) -> tuple[Folder, list[Row]]:
    """A cohort of two slides, in a folder with an awkward name; none is done."""
    out = tmp_path / "out"
    out.mkdir()
    request = request_of(write_slides(tmp_path / "it's $here", 2), out)
    rows = checked(request)
    Folder(out).begin(request, rows)
    return Folder(out), rows


def finish(files: Folder, row: Row) -> None:
    files.output(row).write_bytes(b"a stain")
    record.write(record.path_of(files.output(row)), {})
    record.write(files.account_file(row), {"stain": "HER2", "model": "he2her2"})


def test_the_script_makes_a_project_with_types_and_names_and_adds_what_is_new(tmp_path):
    if not shutil.which("groovy"):
        pytest.skip("no Groovy on this machine: the script is not run")
    for name, text in STANDINS.items():
        path = tmp_path / "classes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def project() -> list[list[str]]:
        """Write the script, run it, and read what the stand-ins wrote."""
        command = ["groovy", "-cp", str(tmp_path / "classes"), str(write_script(files.path))]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return [line.split("|") for line in (files.path / "qupath/project.qpproj").read_text().splitlines()]

    files, rows = make(tmp_path)
    finish(files, rows[0])
    he, stain = project()
    assert he[:4] == [f"file:{tmp_path}/it's%20$here/s0.tif", "s0 H&E", "BRIGHTFIELD_H_E", "thumb"]
    assert stain[0] == f"file:{files.path}/s0.identity.ome.tiff"
    assert stain[1:4] == ["s0 HER2 (virtual)", "BRIGHTFIELD_H_DAB", "thumb"]
    assert "NOT A PHYSICAL IHC" in stain[4]
    finish(files, rows[1])
    lines = project()
    assert [line[1] for line in lines] == ["s0 H&E", "s0 HER2 (virtual)", "s1 H&E", "s1 HER2 (virtual)"]
    assert [line[4] == "old" for line in lines] == [True, True, False, False], "what was there is not added twice"


def test_strings_survive_groovy_s_quotes():
    assert literal("it's $x \\ y\n") == "'it\\'s $x \\\\ y\\n'"


def test_without_a_finished_slide_there_is_no_script(tmp_path):
    files, _ = make(tmp_path)
    with pytest.raises(OutputError, match=r"no slide in .* is done"):
        write_script(files.path)
