"""XMP of an output: software that knows no OME-XML sees that a model made the image, and which.

Sources: XMP Specification Part 1 (ISO 16684-1), section 7; TIFF tag 700 (XMP Specification Part 3, section 2.3.4); IPTC
Photo Metadata Standard 2025.1, sections "Digital Source Type", "AI System Used" and "AI System Version Used".
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping

from wsi_stain import __version__
from wsi_stain.files.notice import NOTICE, RESEARCH_USE

TAG = 700
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TRAINED, ENHANCED = SOURCE_TYPES + "trainedAlgorithmicMedia", SOURCE_TYPES + "algorithmicallyEnhanced"
"""Made by a trained model; and a copy by a built-in model without weights, or a real stain that was resampled."""
_SPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "wsistain": "wsi-stain/provenance/",
}
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_BEGIN, _END = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>', '<?xpacket end="r"?>'
_OWN = ("model_sha256", "source_sha256", "stain")

for _prefix, _uri in _SPACES.items():
    ET.register_namespace(_prefix, _uri)


def source_type(annotations: Mapping[str, str]) -> str:
    """The IPTC digital source type of an output with these annotations."""
    return TRAINED if annotations.get("model_sha256") else ENHANCED


def build(annotations: Mapping[str, str]) -> bytes:
    """The XMP packet of an output, in UTF-8; equal annotations give equal bytes.

    Args:
        annotations: the provenance of the output; notice, model, version, hashes and stain are taken from it.
    """
    root = ET.Element(_name("x", "xmpmeta"))
    about = ET.SubElement(ET.SubElement(root, _name("rdf", "RDF")), _name("rdf", "Description"))
    about.set(_name("rdf", "about"), "")
    about.set(_name("xmp", "CreatorTool"), f"wsi-stain {__version__}")
    about.set(_name("Iptc4xmpExt", "DigitalSourceType"), source_type(annotations))
    notice = annotations.get("notice", NOTICE)
    if notice == NOTICE:
        about.set(_name("Iptc4xmpExt", "AISystemUsed"), annotations.get("model", ""))
        about.set(_name("Iptc4xmpExt", "AISystemVersionUsed"), annotations.get("model_version", ""))
    for key in _OWN:
        about.set(_name("wsistain", key), annotations.get(key, ""))
    alternatives = ET.SubElement(ET.SubElement(about, _name("dc", "description")), _name("rdf", "Alt"))
    text = ET.SubElement(alternatives, _name("rdf", "li"))
    text.set(_LANGUAGE, "x-default")
    text.text = f"{notice}. {RESEARCH_USE}."
    return (_BEGIN + ET.tostring(root, encoding="unicode") + _END).encode()


def read(packet: bytes) -> dict[str, str]:
    """What a packet states about the making of the image: name without namespace → text; empty if it is broken."""
    text = packet.decode("utf-8", "replace")
    if "<!DOCTYPE" in text:
        return {}
    try:
        root = ET.fromstring(text.strip("\0").encode())
    except ET.ParseError:
        return {}
    facts: dict[str, str] = {}
    for description in root.iter(_name("rdf", "Description")):
        ours = {f"{{{_SPACES[prefix]}}}" for prefix in ("xmp", "Iptc4xmpExt", "wsistain")}
        for key, value in description.attrib.items():
            space, _, name = key.rpartition("}")
            if space + "}" in ours:
                facts[name] = value
    return facts


def _name(prefix: str, name: str) -> str:
    return f"{{{_SPACES[prefix]}}}{name}"
