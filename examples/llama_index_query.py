"""Build a LlamaIndex index over the standard library's documentation and ask it questions.

No language model and no key is needed.
"""

import importlib
import inspect

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.millpond import MillpondEmbedding

MODULES = (
    "argparse ast asyncio bisect calendar cmd codecs collections contextlib csv dataclasses "
    "datetime decimal difflib doctest email enum fractions functools gettext glob gzip heapq "
    "hmac html http imaplib inspect io ipaddress json locale logging mailbox math mimetypes "
    "multiprocessing netrc operator os pathlib pickle platform plistlib pprint queue random re "
    "sched secrets selectors shelve shlex shutil signal smtplib socket sqlite3 ssl statistics "
    "string struct subprocess tarfile tempfile textwrap threading timeit tokenize tomllib trace "
    "traceback types unittest urllib.parse uuid venv wave weakref webbrowser zipfile zlib"
)
QUESTIONS = (
    "Which module keeps the smallest item of a list at hand?",
    "How do I tell whether two texts are almost the same?",
    "What do I use for exact arithmetic with money?",
)


def documentation() -> list[Document]:
    modules = map(importlib.import_module, MODULES.split())
    documented = ((module.__name__, inspect.getdoc(module)) for module in modules)
    return [Document(text=doc, metadata={"module": name}) for name, doc in documented if doc]


def main() -> None:
    embed_model = MillpondEmbedding(model_name="sentence-transformers/all-MiniLM-L6-v2")
    splitter = SentenceSplitter(chunk_size=150, chunk_overlap=0)
    index = VectorStoreIndex.from_documents(
        documentation(), transformations=[splitter], embed_model=embed_model
    )
    retriever = index.as_retriever(similarity_top_k=3)
    for question in QUESTIONS:
        print(question)
        for hit in retriever.retrieve(question):
            print(f"  {hit.score:.2f}  {hit.metadata['module']}: {hit.text.split(chr(10))[0]}")


if __name__ == "__main__":
    main()
