"""The Python interface of a shared model server, so that its programs only change an import.

    from embedserve_client.compat.ipc import get_embedding_model, search_index

`get_embedding_model()` returns the client of the process, which stands in for a
`SentenceTransformer`. While the service is unavailable, it computes with a local model of the same
vectors. `embedserve_client.settings.IPCSettings` lists the environment variables.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Unpack

from embedserve_client.base import ClientOptions
from embedserve_client.client import Client
from embedserve_client.errors import IndexMismatchError
from embedserve_client.fallback import LocalOnly
from embedserve_client.fork_safe_lock import ForkSafeLock
from embedserve_client.hit import Hit
from embedserve_client.index import VectorIndex
from embedserve_client.local_model import LocalModel
from embedserve_client.search import PageHit, rank_pages
from embedserve_client.settings import IPCSettings
from embedserve_client.vectors import Vectors

#: Returns the URL and the text of each page that a search engine finds for a query.
FetchPages = Callable[[str], Iterable[tuple[str, str]]]


class EmbeddingClient(Client):
    """A `Client` with the methods of a shared model server's client. Safe across threads."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        fetch_pages: FetchPages | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Creates a client.

        Args:
            base_url: the URL of the service; None: `EMBEDSERVE_URL`, or port 8000 on this machine.
            fetch_pages: finds and fetches the pages of the web search.
            options: see `ClientOptions`.

        Raises:
            InvalidURLError: the URL is malformed.
            ValueError: an option has an invalid value.
        """
        super().__init__(base_url, **options)
        self.fetch_pages = fetch_pages

    @classmethod
    def from_environment(cls) -> "EmbeddingClient":
        """Returns a client with the settings of the environment.

        Raises:
            InvalidURLError: the URL is malformed.
            ValueError: a variable has an invalid value.
        """
        settings = IPCSettings.read()
        options: ClientOptions = {
            "model": settings.model,
            "local_model": settings.local_model,
        }
        if settings.concurrency is not None:
            options["concurrency"] = settings.concurrency
        if not settings.use_service:
            options["fallback"] = LocalOnly(LocalModel(settings.local_model))
        elif settings.fallback is None:
            options["fallback"] = "local"
        return cls(settings.url, **options)

    def generate_embeddings(self, texts: str | Sequence[str]) -> Vectors:
        """Embeds texts, in order: float32 of shape (n, dim), or (dim,) for a single string.

        Raises:
            EmbedError: the texts can't be embedded.
        """
        return self.embed(texts)

    def build_vector_index(
        self, docs: Sequence[str], urls: Sequence[str]
    ) -> tuple[VectorIndex, list[dict[str, Any]]]:
        """Returns an index of documents and their metadata, `{"url": …, "document": …}`, in order.

        `VectorIndex.faiss` is the index of faiss.

        Raises:
            IndexMismatchError: the number of URLs isn't the number of documents.
            EmbedError: the documents can't be embedded.
        """
        if len(docs) != len(urls):
            raise IndexMismatchError(
                f"There are {len(urls)} URLs for {len(docs)} documents. Pass one per document."
            )
        metadata = [{"url": url, "document": doc} for url, doc in zip(urls, docs, strict=True)]
        return VectorIndex.build(docs, self, metadata), metadata

    def search_index(
        self, query: str, index: VectorIndex, metadata: Sequence[Any], k: int = 10
    ) -> list[Hit]:
        """Returns the k documents most similar to a query, best first, with their metadata.

        Args:
            query: the search query.
            index: an index from `build_vector_index` or `VectorIndex.load`.
            metadata: a value for each document, in the order of the index.
            k: the maximum number of hits.

        Raises:
            TypeError: `index` is an index of faiss, which doesn't know the space of its vectors.
            IndexMismatchError: the number of values isn't the number of vectors.
            SpaceMismatchError: the client's vectors can't be compared with those in the index.
            ValueError: `k` is below 1.
            EmbedError: the query can't be embedded.
        """
        if not isinstance(index, VectorIndex):
            raise TypeError(
                f"`index` is a {type(index).__name__}, which doesn't know the space of its "
                "vectors. Pass the index from `build_vector_index`, or from `VectorIndex.load`."
            )
        if len(metadata) != len(index):
            raise IndexMismatchError(
                f"There are {len(metadata)} metadata values for an index of {len(index)} vectors. "
                "Pass the list that was built with the index."
            )
        hits = index.search(query, k, client=self)
        return [hit._replace(metadata=metadata[hit.position]) for hit in hits]

    def web_search_with_embeddings(
        self, query: str, k: int = 10, *, fetch_pages: FetchPages | None = None
    ) -> list[PageHit]:
        """Fetches pages and returns the k passages most similar to a query, best first.

        Args:
            query: the search query, which is passed to `fetch_pages`.
            k: the maximum number of passages.
            fetch_pages: returns the URL and the text of each page; None: that of the client.

        Raises:
            ValueError: there is no `fetch_pages`, or a page isn't a pair of strings.
            EmbedError: the query or the passages can't be embedded.
        """
        return rank_pages(query, self._fetch(query, fetch_pages), self, k)

    def fast_web_search_with_embeddings(
        self, query: str, k: int = 10, *, fetch_pages: FetchPages | None = None
    ) -> list[PageHit]:
        """Ranks pages by their first passage only, which costs one vector for each page.

        Otherwise it is `web_search_with_embeddings`.
        """
        pages = self._fetch(query, fetch_pages)
        return rank_pages(query, pages, self, k, passages_per_page=1)

    def _fetch(self, query: str, fetch_pages: FetchPages | None) -> Iterable[tuple[str, str]]:
        fetch_pages = fetch_pages or self.fetch_pages
        if fetch_pages is None:
            raise ValueError(
                "There is no function that fetches pages. Pass `fetch_pages=`, or set it once: "
                "`get_embedding_model().fetch_pages = …`. It takes the query and returns pairs of "
                "a URL and a text."
            )
        return fetch_pages(query)


_create_client = cache(EmbeddingClient.from_environment)
#: Two threads that make the first call must get the same client.
_create_lock = ForkSafeLock()


def get_embedding_model() -> EmbeddingClient:
    """Returns the client of this process, created at the first call; it replaces a local model.

    Raises:
        InvalidURLError: the URL is malformed.
        ValueError: an environment variable has an invalid value.
    """
    with _create_lock:
        return _create_client()


def generate_embeddings(texts: str | Sequence[str]) -> Vectors:
    """Calls `EmbeddingClient.generate_embeddings` of the client of this process."""
    return get_embedding_model().generate_embeddings(texts)


def build_vector_index(
    docs: Sequence[str], urls: Sequence[str]
) -> tuple[VectorIndex, list[dict[str, Any]]]:
    """Calls `EmbeddingClient.build_vector_index` of the client of this process."""
    return get_embedding_model().build_vector_index(docs, urls)


def search_index(query: str, index: VectorIndex, metadata: Sequence[Any], k: int = 10) -> list[Hit]:
    """Calls `EmbeddingClient.search_index` of the client of this process."""
    return get_embedding_model().search_index(query, index, metadata, k)


def web_search_with_embeddings(
    query: str, k: int = 10, *, fetch_pages: FetchPages | None = None
) -> list[PageHit]:
    """Calls `EmbeddingClient.web_search_with_embeddings` of the client of this process."""
    return get_embedding_model().web_search_with_embeddings(query, k, fetch_pages=fetch_pages)


def fast_web_search_with_embeddings(
    query: str, k: int = 10, *, fetch_pages: FetchPages | None = None
) -> list[PageHit]:
    """Calls `EmbeddingClient.fast_web_search_with_embeddings` of the client of this process."""
    return get_embedding_model().fast_web_search_with_embeddings(query, k, fetch_pages=fetch_pages)
