"""The web page and the HTTP service of `geoloc-fast serve` (extra [serve]). No other room imports this one.

Begin with `engine`, which locates photos from any number of threads. `guard` checks who may ask and how much,
`connection` how slowly. `app` has the addresses, `jobs` the batches, `cases` what a person stores, `static/` the page.
"""
