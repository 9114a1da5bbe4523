def docs_page(document: object, kinds: object) -> str:
    return "x"
