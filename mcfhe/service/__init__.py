"""The HTTP service (extra ``mcfhe[serve]``): wire format v1 over Starlette and uvicorn.

``settings`` holds every limit, ``app`` the routes, ``admission`` and ``scheduler`` what may wait and what runs,
``sessions`` and ``replay`` what is remembered, ``run`` and ``memory`` the process. Nothing here knows a secret key.
"""
