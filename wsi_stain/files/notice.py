"""The words that mark a virtual stain, in every output and page."""

NOTICE = "VIRTUAL STAIN - NOT A PHYSICAL IHC"
"""Written into every output, so that a virtual stain cannot be mistaken for a physical one."""
RESEARCH_USE = "Research use only"
"""The only place of this sentence; pages write it in capitals, or within a sentence."""
