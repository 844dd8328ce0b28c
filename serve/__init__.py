"""``uid-serve``: a page and an HTTP service on one box, or on a cluster.

It needs the extra ``serve``, or ``cluster``; ``triton`` needs neither.

``cli``        the command line
``hosting``    uvicorn: the socket, signals, slow connections
``app``        the routes: one application, whatever hosts it
``guard``      what every request passes: token, host name, slow readers, counters
``requests``   what a client asks for: uploads within limits, forms, options
``parameters`` the options of ``uid-run`` that a request may have
``queue``      a bounded queue, and the threads that compute
``work``       one image: bytes in, bytes out
``answers``    what a client gets: images, errors, progress
``metrics``    counters for Prometheus
``openapi``    the description of the service
``cluster``    the application on Ray Serve
``actors``     ``uid-run --cluster``: a pipeline that actors of a Ray cluster share
``ray_session``  a cluster that is started or joined
``triton``     the model of whole images that a Triton server runs
``page/``      the page: one HTML, one CSS and one JavaScript file
"""
