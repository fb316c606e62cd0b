"""The service and its page: `geoloc-fast serve`. Extra [serve]; nothing of it is imported elsewhere.

Begin with `engine` (photos in, answers out, from any number of threads), then `guard` (who may ask, and how much at
once; `connection`: and how slowly), `app` (the addresses), `jobs` (batches), `cases` (what a person keeps of it),
`static/` (the page).
"""
