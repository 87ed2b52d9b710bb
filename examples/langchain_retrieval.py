"""A LangChain retrieval chain over the Python standard library's docstrings, with Chroma on disk.

The last step prints what was found; in a program of yours, a language model stands there.
"""

from tempfile import TemporaryDirectory

from chromadb.config import Settings
from docstrings import gather_passages
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from langchain_millpond import MillpondEmbeddings

PASSAGES = 300
QUESTIONS = [
    "how do I parse the options of a command line program?",
    "how do I print the calendar of a month?",
    "how do I find an element in a sorted list?",
]
PROMPT = ChatPromptTemplate.from_template("{question}\n{context}")


def titles(documents: list[Document]) -> str:
    return "\n".join(f"  {document.metadata['title']}" for document in documents)


def main() -> None:
    passages = gather_passages()[:PASSAGES]
    embeddings = MillpondEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = Settings(anonymized_telemetry=False, is_persistent=True)
        store = Chroma("docstrings", embeddings, folder, client_settings=settings)
        store.add_texts(
            [f"{title}: {text}" for title, text in passages],
            [{"title": title} for title, _ in passages],
        )
        retriever = store.as_retriever(search_kwargs={"k": 3})
        context = retriever | RunnableLambda(titles)
        chain = {"context": context, "question": RunnablePassthrough()} | PROMPT
        for answer in chain.batch(QUESTIONS):
            print(answer.to_messages()[0].content, end="\n\n")


if __name__ == "__main__":
    main()
