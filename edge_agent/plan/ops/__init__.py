"""The op families of the registry: one file each, with a table of schemas and the type rules that go with them."""
