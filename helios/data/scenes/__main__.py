"""Print the vocabulary page: ``python -m helios.data.scenes > docs/vocabulary.md``."""

import sys

from .document import vocabulary_document

if __name__ == "__main__":
    sys.stdout.write(vocabulary_document())
