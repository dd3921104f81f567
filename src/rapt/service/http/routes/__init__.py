"""The routes of the API, one module an object. Each offers `router(service)`."""
