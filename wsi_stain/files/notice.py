"""The words that mark a virtual stain, and a real one that was resampled, in every output and page."""

NOTICE = "VIRTUAL STAIN - NOT A PHYSICAL IHC"
"""Written into every output, so that a virtual stain cannot be mistaken for a physical one."""
RESAMPLED = "REAL STAIN, NOT VIRTUAL - RESAMPLED INTO THE FRAME OF ANOTHER SLIDE"
"""Written instead into a scanned slide that was registered to another one and resampled."""
RESEARCH_USE = "Research use only"
"""The only place of this sentence; pages write it in capitals, or within a sentence."""
