"""Images and videos on disk.

``formats``   the table of formats, and a decoded image
``decode``, ``encode``   image files to arrays and back; ``exif`` keeps their metadata true
``frames``    frames and metadata of a clip; ``frame_folder`` has folders of numbered images, ``selection`` a part
``ffmpeg``, ``video_reader``, ``deinterlace``, ``missing``   video files in, through PyAV
``video_codecs``, ``video_writer``   which encoder, and its segments
``video_tracks``, ``video_join``, ``video_file``   what a file holds beside its frames, and the whole file
``work``      work in progress beside its target, which a next run goes on with
``video``     a whole video, frame by frame; ``prefetch`` runs decoding and encoding on other threads
"""
