"""A database that does not know the CA of a home is not the database of that home, whichever kind it is."""

from pathlib import Path

import pytest
from sqlalchemy import Connection, insert

from server.errors import ConfigError
from server.home import Home
from server.keys.known_ca import require_known_ca
from server.storage.blocking import blocking
from server.storage.place import Place
from server.storage.schema import issuers
from tests.support.ca import make_ca


@pytest.mark.parametrize("trace", ["ca/root.pem", "public/crl/issuing.crl", "public/crl/root.crl"])
def test_a_database_without_the_ca_of_this_home_is_refused(place: Place, tmp_path: Path, trace: str) -> None:
    home = Home(tmp_path)
    home.create()
    require_known_ca(home, place)  # nothing of a CA is here: the first start
    (home.root / trace).touch()
    with pytest.raises(ConfigError, match=f"{trace}.*certmill db restore FILE"):
        require_known_ca(home, place)
    blocking(place, add_root)
    require_known_ca(home, place)


def add_root(connection: Connection) -> None:
    der = make_ca().issuer.certificate_der
    connection.execute(insert(issuers), {"label": "root", "key_label": "root", "certificate_der": der})
    connection.commit()
