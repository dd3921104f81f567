"""The routes of the API, one module a subject. Each function `..._router(service)` makes those of one object."""
