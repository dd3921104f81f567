"""The page for the provider and the tenant: static files in the browser, and the public API behind them."""
