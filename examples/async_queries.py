"""Many coroutines ask one engine at the same time, and their texts run in shared batches."""

import asyncio

from millpond import Engine

QUESTIONS = [f"what is {number} times {number}?" for number in range(64)]


async def ask(engine: Engine, question: str) -> int:
    vector = await engine.aembed(question, task="query")  # float32 [384]
    return len(vector)


async def main() -> None:
    async with Engine("sentence-transformers/all-MiniLM-L6-v2") as engine:
        await asyncio.gather(*(ask(engine, question) for question in QUESTIONS))
        stats = engine.stats()
    print(f"{stats.texts} queries ran in {stats.batches} forward passes")


if __name__ == "__main__":
    asyncio.run(main())
