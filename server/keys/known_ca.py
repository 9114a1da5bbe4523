"""Whether the database of a home is the one that knows its CA, and everything that was published. Blocking.

A database that was lost, or put back by hand as it once was, takes back what it does not know: the next CRL would
leave revocations out, and nobody would see it. So a start looks at what the home has published before it makes
anything.
"""

from sqlalchemy import func, select

from server.errors import ConfigError
from server.home import Home
from server.keys.certified import certified_keys, rows_of
from server.revocation.crl_file import older_than_published, published_number
from server.storage.place import Place, no_database
from server.storage.schema import crls


def require_known_ca(home: Home, place: Place) -> None:
    """Refuse a database that does not know the CA which this home has had, or not its last CRLs. Changes nothing.

    Raises `ConfigError` or `StorageError`.
    """
    if not any(path.exists() for path in home.traces_of_a_ca):
        return
    if not certified_keys(home, place):
        raise ConfigError(no_database(home, place))
    for path in (home.public / "crl").glob("*.crl"):
        published = published_number(path)
        highest = select(func.coalesce(func.max(crls.c.number), 0)).where(crls.c.issuer == path.stem)
        ((known,),) = rows_of(home, place, highest)
        if published > known:
            raise ConfigError(older_than_published(place, path.stem, published, known))
