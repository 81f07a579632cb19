// What is said when a video ends or its process is lost.

/** By the reason of `session.done`. */
export const ENDED = {
  complete: "The video is complete.",
  stopped: "Stopped. You can extend it or branch from any chunk.",
  lifetime: "The server ended this session: it reached its longest time. It is kept in the library.",
  worker: "The session ended with its worker. It is kept in the library.",
};

export const LOST = "The model stopped and is being started again. The video goes on by itself.";

export const DRAINING = "The server is going down; this session is kept and can be taken up again.";
